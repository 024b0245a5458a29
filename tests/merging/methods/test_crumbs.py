"""Model Breadcrumbs: neither the outliers nor the small entries, over each scope (Davari & Belilovsky 2024)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import BreadcrumbsConfig, BreadcrumbsTiesConfig, Scope
from optmerge.merging.methods import vectors
from optmerge.merging.methods.crumbs import mergekit_ranks, paper_ranks
from tests.merging.methods.toy import KINDS, every_kind, merged, of_deltas, random


def by_hand(values: torch.Tensor, removed: int, kept: int) -> torch.Tensor:
    """The entries of ranks ``removed`` to ``removed + kept``; equal magnitudes in flat order."""
    flat = values.reshape(-1)
    order = flat.abs().argsort(descending=True, stable=True)[removed : removed + kept]
    return torch.zeros_like(flat).index_copy(0, order, flat[order]).view(values.shape)


def rows(values: torch.Tensor, name: str) -> torch.Tensor:
    """[outputs, inputs of one output] of a parameter of `KINDS`."""
    kind = KINDS[name]
    if kind.structure == "vector":
        return values.reshape(1, -1)
    if kind.structure == "convolution":
        return values.flatten(1)
    return (values.mT if kind.input_first else values).reshape(-1, values.shape[-2 if kind.input_first else -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_tensor_keeps_so_many_of_a_row(dtype: torch.dtype) -> None:
    models = every_kind(1, dtype=dtype)
    found = merged(BreadcrumbsConfig(density=0.5, outliers=0.25), models)
    for name in models.names:
        for row, tau in zip(rows(found[name], name), rows(models.task_vector("expert-0", name), name), strict=True):
            if len(row) == 1:  # a scalar stays as it is
                assert torch.equal(row, tau)
            elif len(row):
                assert torch.equal(row, by_hand(tau, int(0.25 * len(row)), int(0.5 * len(row))))
                assert row.count_nonzero() <= int(0.5 * len(row))


@pytest.mark.parametrize("scope", ["tensor", "model", "stacked"])
@pytest.mark.parametrize(("density", "outliers"), [(0.15, 0.006), (0.3, 0.2), (0.0, 0.1), (1.0, 0.1), (0.9, 0.5)])
def test_wider_scopes(scope: Scope, density: float, outliers: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors.RawVectors.__init__, "__kwdefaults__", {"by_rows": False, "limit": 16})
    generator = torch.Generator().manual_seed(1)
    models = of_deltas([{"a": random(generator, 10, 7), "b": 3 * random(generator, 130)} for _ in range(2)])
    found = merged(BreadcrumbsConfig(density=density, outliers=outliers, scope=scope), models)

    def kept(values: torch.Tensor) -> torch.Tensor:
        return by_hand(values, int(outliers * values.numel()), int(density * values.numel()))

    taus = {name: torch.stack([models.task_vector(expert, name) for expert in models.experts]) for name in models.names}
    for name, values in taus.items():
        if scope == "stacked":
            expected = kept(values).sum(0)
        elif scope == "tensor":
            expected = torch.stack([kept(tau) for tau in values]).sum(0)
        else:
            whole = [torch.cat([taus[other][row].reshape(-1) for other in models.names]) for row in range(2)]
            sizes = [models.base(other).numel() for other in models.names]
            parts = [torch.split(kept(tau), sizes) for tau in whole]
            expected = torch.stack([part[models.names.index(name)] for part in parts]).sum(0).view(values[0].shape)
        assert torch.equal(found[name], expected), name


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=40), st.floats(0, 1), st.floats(0, 0.99), st.integers(1, 20))
def test_ties_whatever_the_chunks(values: list[int], density: float, outliers: float, limit: int) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    expected = by_hand(delta, int(outliers * len(values)), int(density * len(values)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors.RawVectors.__init__, "__kwdefaults__", {"by_rows": False, "limit": limit})
        for scope in ("row", "tensor", "model", "stacked"):
            config = BreadcrumbsConfig(density=density, outliers=outliers, scope=scope)
            assert torch.equal(merged(config, of_deltas([{"w": delta}]))["w"], expected), scope


def test_without_outliers_it_is_a_trim_and_with_everything_else_kept_only_outliers_go() -> None:
    delta = random(torch.Generator().manual_seed(2), 20, 40)
    models = of_deltas([{"w": delta}])
    trimmed = merged(BreadcrumbsConfig(density=0.25, outliers=0.0), models)["w"]
    assert torch.equal(trimmed, torch.stack([by_hand(row, 0, 10) for row in delta]))
    rest = merged(BreadcrumbsConfig(density=0.75, outliers=0.25), models)["w"]
    assert torch.equal(rest, torch.stack([by_hand(row, 10, 30) for row in delta]))


def test_what_is_kept_is_bounded_by_the_quantile_of_the_outliers() -> None:
    delta = random(torch.Generator().manual_seed(2), 50, 200)
    found = merged(BreadcrumbsConfig(density=0.15, outliers=0.01), of_deltas([{"w": delta}]))["w"]
    largest_left = delta.abs().sort(dim=1, descending=True).values[:, 2]
    assert torch.equal(found.abs().amax(1), largest_left)
    assert (found.count_nonzero(dim=1) == 30).all()


def test_counts() -> None:
    assert paper_ranks(0.15, 0.006, 1000) == (6, 156)
    assert paper_ranks(0.15, 0.006, 100) == (0, 15)  # no outlier where there is less than one
    assert paper_ranks(1.0, 0.1, 10) == (1, 10)
    assert paper_ranks(0.15, 0.006, 1) == (0, 1)
    assert mergekit_ranks(0.9, 0.01, 1000) == (10, 910)
    assert mergekit_ranks(0.9, 0.2, 1000) == (100, 1000)  # rather fewer outliers than less than the density
    assert mergekit_ranks(1.0, 0.2, 1000) == (0, 1000)
    assert mergekit_ranks(0.9, 0.01, 64) == (0, 57)


def test_election_keeps_what_has_the_elected_sign() -> None:
    models = of_deltas([{"w": torch.tensor([9.0, 2.0, -2.0, 0.1])}, {"w": torch.tensor([-9.0, 1.0, 3.0, 0.1])}])
    crumbs: dict[str, object] = {"density": 0.5, "outliers": 0.25}
    sums = merged(BreadcrumbsTiesConfig.model_validate(crumbs), models)["w"]
    assert sums.tolist() == [0.0, 3.0, 3.0, 0.0]
    means = merged(BreadcrumbsTiesConfig.model_validate({**crumbs, "normalize": True}), models)["w"]
    assert means.tolist() == [0.0, 1.5, 3.0, 0.0]
    assert merged(BreadcrumbsConfig.model_validate(crumbs), models)["w"].tolist() == [0.0, 3.0, 1.0, 0.0]


def test_weights_vote_for_mergekit_only() -> None:
    models = of_deltas([{"w": torch.tensor([[3.0]])}, {"w": torch.tensor([[-2.0]])}])
    settings: dict[str, object] = {"density": 1.0, "outliers": 0.0, "weights": {"expert-0": 0.5}}
    assert merged(BreadcrumbsTiesConfig.model_validate(settings), models)["w"].item() == 1.5
    by_mergekit = BreadcrumbsTiesConfig.model_validate({**settings, "compat": "mergekit"})
    assert merged(by_mergekit, models)["w"].item() == -2.0
