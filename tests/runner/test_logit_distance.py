"""Distances of logits: blocks, batches of different sizes, and texts with several predictions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.runner import logit_distance
from optmerge.runner.logit_distance import logit_distances

LOGITS = {
    name: torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(seed))
    for seed, name in enumerate(("own", "near", "far"))
}
LOGITS["same"] = LOGITS["own"]
SCORED = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]]).bool()


class Resident:
    """Stands in for the model in memory; notes what is put into it."""

    def __init__(self, *, texts: bool, dtype: torch.dtype = torch.float32) -> None:
        self.texts, self.dtype = texts, dtype
        self.loaded: list[str] = []

    def load(self, name: str) -> None:
        self.loaded.append(name)

    def judge(self, task: str, batch: Batch) -> Tensor:
        logits = LOGITS[self.loaded[-1]][batch.positions].to(self.dtype)
        return logits if self.texts else logits[:, 0]

    def batches(self) -> list[tuple[str, Batch]]:
        parts = (torch.arange(2), torch.arange(2, 5))
        return [("task", Batch({}, at, SCORED[at] if self.texts else None)) for at in parts]

    def distances(self, *others: str) -> dict[str, Tensor]:
        return logit_distances("own", others, self.load, self.judge, self.batches(), device=torch.device("cpu"))


def test_a_classifiers_is_the_mean_over_examples() -> None:
    found = Resident(texts=False).distances("near", "far", "same")
    for name in ("near", "far"):
        torch.testing.assert_close(found[name], (LOGITS[name] - LOGITS["own"])[:, 0].norm(dim=-1).mean())
    assert found["same"] == 0


def test_a_texts_is_the_mean_over_what_is_scored() -> None:
    found = Resident(texts=True).distances("far")
    rows = (LOGITS["far"] - LOGITS["own"]).norm(dim=-1)
    expected = torch.stack([row[mask].mean() for row, mask in zip(rows, SCORED, strict=True)]).mean()
    torch.testing.assert_close(found["far"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_change_nothing_but_what_is_held(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    whole, pieces = Resident(texts=True, dtype=dtype), Resident(texts=True, dtype=dtype)
    expected = whole.distances("near", "far")
    monkeypatch.setattr(logit_distance, "BLOCK", 1)
    for name, value in pieces.distances("near", "far").items():
        torch.testing.assert_close(value, expected[name])
        assert value.dtype == torch.float32
    assert whole.loaded == ["own", "near", "far"]
    assert pieces.loaded == ["own", "near", "far"] * 2
