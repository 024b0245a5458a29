"""TIES-split vectors against the definition on whole task vectors (Yang et al. 2024, AdaMerging++)."""

from __future__ import annotations

import pytest
import torch

from optmerge.config.methods import TiesConfig, TiesSplitConfig
from optmerge.merging.methods import build_method, vectors
from tests.merging.methods.toy import ToyModels, of_deltas, prepared, random


@pytest.fixture
def models() -> ToyModels:
    generator = torch.Generator().manual_seed(3)
    return of_deltas([{"small": 0.1 * random(generator, 9, 7), "large": random(generator, 40)} for _ in range(4)])


def by_definition(models: ToyModels, density: float) -> dict[str, list[torch.Tensor]]:
    """Parameter -> each expert's part: top entries of the whole vector, then zero where the sum's sign is another."""
    names = models.names
    flat = torch.stack(
        [torch.cat([models.task_vector(expert, name).flatten() for name in names]) for expert in models.experts]
    )
    order = flat.abs().argsort(dim=1, descending=True)
    kept = torch.zeros_like(flat).scatter(1, order[:, : round(density * flat.shape[1])], 1.0) * flat
    parts = torch.where(kept.sign() == kept.sum(0).sign(), kept, 0.0)
    pieces = torch.split(parts, [models.base(name).numel() for name in names], dim=1)
    return {
        name: [row.view(models.base(name).shape) for row in piece] for name, piece in zip(names, pieces, strict=True)
    }


@pytest.mark.parametrize("density", [0.2, 0.63, 1.0])
def test_parts_by_definition(models: ToyModels, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors.RawVectors.__init__, "__kwdefaults__", {"by_rows": False, "limit": 8})
    method = prepared(TiesSplitConfig(density=density), models)
    expected = by_definition(models, density)
    assert any(part.count_nonzero() not in (0, part.numel()) for parts in expected.values() for part in parts)
    for name in models.names:
        for part, wanted in zip(method.expert_deltas(models, name), expected[name], strict=True):
            assert torch.equal(part, wanted)
        torch.testing.assert_close(method.delta(models, name), torch.stack(expected[name]).sum(0))


@pytest.mark.parametrize("scope", ["model", "tensor", "row", "stacked"])
def test_their_sum_is_ties_without_its_mean(models: ToyModels, scope: str) -> None:
    split = build_method(TiesSplitConfig(scope=scope), models.experts)
    ties = build_method(TiesConfig(scope=scope, normalize=False), models.experts)
    for method in (split, ties):
        method.prepare(models)
    for name in models.names:
        torch.testing.assert_close(split.delta(models, name), ties.delta(models, name))


def test_a_tie_elects_nobody() -> None:
    models = of_deltas([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([-1.0, -1.0])}])
    method = build_method(TiesSplitConfig(density=1.0), models.experts)
    assert [part.tolist() for part in method.expert_deltas(models, "w")] == [[0.0, 2.0], [0.0, 0.0]]
