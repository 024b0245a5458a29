"""Made-up batches and logits of both kinds, padded left or right, alone or together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optmerge.calibration import Batch
from optmerge.objective import Outputs

CLASSES = 7


@dataclass(frozen=True)
class Case:
    """Four examples: a row of logits each for a classifier, some tokens' each for a language model."""

    kind: str
    logits: list[Tensor]  # [C] each, or [T, V] each
    ids: list[list[int]]
    completions: list[list[bool]]  # per token, whether it is scored

    def batch(self, positions: Sequence[int], *, left: bool = False, extra: int = 0) -> tuple[Batch, Outputs]:
        """A padded batch and what a model says of it; logits at padding are large numbers that nobody may look at."""
        if self.kind == "classifier":
            inputs = {"input_ids": torch.ones(len(positions), 3, dtype=torch.int64)}
            labels = torch.tensor([p % CLASSES for p in positions])
            logits = torch.stack([self.logits[p] for p in positions])
            return Batch(inputs, torch.tensor(positions), None, labels), Outputs(logits)
        longest = max(len(self.ids[p]) for p in positions) + extra
        ids = torch.full((len(positions), longest), 6)
        scored = torch.zeros(len(positions), longest, dtype=torch.bool)
        logits = torch.full((len(positions), longest, CLASSES), 1e4, dtype=self.logits[0].dtype)
        logits[..., 1:] = -1e4
        for row, p in enumerate(positions):
            length = len(self.ids[p])
            begin = longest - length if left else 0
            ids[row, begin : begin + length] = torch.tensor(self.ids[p])
            scored[row, begin : begin + length - 1] = torch.tensor(self.completions[p][1:])
            logits[row, begin : begin + length] = self.logits[p]
        targets = ids[:, 1:][scored[:, :-1]]
        return Batch({"input_ids": ids}, torch.tensor(positions), scored, targets), Outputs(logits)

    def everything(self) -> list[int]:
        return list(range(len(self.logits)))


def make_case(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    if kind == "classifier":
        return Case(kind, [draw(CLASSES) for _ in range(4)], [[1]] * 4, [[False]] * 4)
    lengths, prompts = [5, 3, 6, 2], [2, 1, 4, 1]
    ids = [torch.randint(0, CLASSES, (n,), generator=generator).tolist() for n in lengths]
    completions = [[t >= prompt for t in range(n)] for n, prompt in zip(lengths, prompts, strict=True)]
    return Case(kind, [draw(n, CLASSES) for n in lengths], ids, completions)
