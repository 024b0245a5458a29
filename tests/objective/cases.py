"""Made-up batches and outputs of both kinds, padded left or right, alone or together; and a table of coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optmerge.calibration import Batch
from optmerge.objective import Outputs
from optmerge.objective.geometry import Geometry

CLASSES = 7
LAYERS = 3
WIDTH = 4


@dataclass(frozen=True)
class Case:
    """Four examples: a row of logits each for a classifier, some tokens' each for a language model."""

    kind: str
    logits: list[Tensor]  # [C] each, or [T, V] each
    ids: list[list[int]]
    completions: list[list[bool]]  # per token, whether it is scored
    hidden: list[Tensor] = field(default_factory=list)  # [LAYERS, T, WIDTH] each

    def batch(self, positions: Sequence[int], *, left: bool = False, extra: int = 0) -> tuple[Batch, Outputs]:
        """A padded batch and what a model says of it; at padding stand large numbers that nobody may look at."""
        longest = max(len(self.ids[p]) for p in positions) + extra
        shape = (len(positions), longest)
        ids, mask = torch.full(shape, 6), torch.zeros(shape, dtype=torch.int64)
        scored = torch.zeros(shape, dtype=torch.bool)
        logits = torch.full((*shape, CLASSES), 1e4, dtype=self.logits[0].dtype)
        logits[..., 1:] = -1e4
        hidden = torch.full((LAYERS, *shape, WIDTH), 1e4, dtype=self.logits[0].dtype)
        for row, p in enumerate(positions):
            length = len(self.ids[p])
            begin = longest - length if left else 0
            ids[row, begin : begin + length] = torch.tensor(self.ids[p])
            mask[row, begin : begin + length] = 1
            if self.hidden:
                hidden[:, row, begin : begin + length] = self.hidden[p]
            if self.kind == "lm":
                scored[row, begin : begin + length - 1] = torch.tensor(self.completions[p][1:])
                logits[row, begin : begin + length] = self.logits[p]
        inputs, layers = {"input_ids": ids, "attention_mask": mask}, dict(enumerate(hidden)) if self.hidden else {}
        if self.kind == "classifier":
            labels = torch.tensor([p % CLASSES for p in positions])
            logits = torch.stack([self.logits[p] for p in positions])
            return Batch(inputs, torch.tensor(positions), None, labels), Outputs(logits, layers)
        targets = ids[:, 1:][scored[:, :-1]]
        return Batch(inputs, torch.tensor(positions), scored, targets), Outputs(logits, layers)

    def everything(self) -> list[int]:
        return list(range(len(self.logits)))


def make_case(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)

    if kind == "classifier":
        logits = [draw(CLASSES) for _ in range(4)]
        ids = [[1] * n for n in (3, 2, 3, 1)]
        return Case(kind, logits, ids, [[False] * len(row) for row in ids], [draw(LAYERS, len(r), WIDTH) for r in ids])
    lengths, prompts = [5, 3, 6, 2], [2, 1, 4, 1]
    ids = [torch.randint(0, CLASSES, (n,), generator=torch.Generator().manual_seed(5)).tolist() for n in lengths]
    completions = [[t >= prompt for t in range(n)] for n, prompt in zip(lengths, prompts, strict=True)]
    logits = [draw(n, CLASSES) for n in lengths]
    return Case(kind, logits, ids, completions, [draw(LAYERS, n, WIDTH) for n in lengths])


def make_geometry(*, seed: int = 0, layers: int = 4, directions: int = 3) -> tuple[Geometry, Tensor]:
    """An embedding, and an attention and an MLP group per layer, one coefficient of them frozen; and coefficients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    rows = 1 + 2 * layers
    free = torch.ones(rows, directions, dtype=torch.bool)
    free[1, 0] = False
    start = 0.1 + 0.3 * draw(rows, directions)
    geometry = Geometry(
        start=start,
        lower=torch.where(free, -1.0, start),
        upper=torch.where(free, 2.0, start),
        free=free,
        sizes=torch.arange(1, rows + 1),
        layers=(None, *(layer for layer in range(layers) for _ in range(2))),
        kinds=("embedding", *["attention", "mlp"] * layers),
        norms=0.5 + draw(rows, directions),
        cosines=torch.zeros(rows, directions, directions, dtype=torch.float64),
    )
    return geometry, torch.where(free, 2.0 * draw(rows, directions) - 0.7, start)
