"""Each term of the coefficients against its formula, on tables small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from optmerge.config.objectives import AnchorL1Config, AnchorL2Config
from optmerge.errors import ConfigError
from optmerge.objective.anchors import AnchorL1, AnchorL2
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.geometry import Geometry
from optmerge.objective.pairs import Overlap, Similarity
from optmerge.objective.sizes import L1, L2
from optmerge.objective.smoothness import Smoothness

from .cases import make_geometry


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def geometry_of(
    start: Tensor, *, norms: Tensor | None = None, layers: list[tuple[str, int | None]] | None = None
) -> Geometry:
    of = layers or [("attention", row) for row in range(len(start))]
    return Geometry(
        start=start,
        lower=start - 5,
        upper=start + 5,
        free=torch.ones(start.shape, dtype=torch.bool),
        sizes=torch.ones(len(start), dtype=torch.int64),
        layers=tuple(layer for _, layer in of),
        kinds=tuple(kind for kind, _ in of),
        norms=torch.ones_like(start) if norms is None else norms,
        cosines=torch.zeros(len(start), start.shape[1], start.shape[1], dtype=torch.float64),
    )


@pytest.mark.parametrize("scale", ["none", "norms"])
def test_an_anchor_is_nothing_at_the_start(scale: str) -> None:
    geometry, _ = make_geometry()
    for term in (AnchorL1(AnchorL1Config(scale=scale)), AnchorL2(AnchorL2Config(scale=scale))):
        point = geometry.start.clone().requires_grad_()
        value = term.value(point, geometry)
        assert float(value.detach()) == 0.0
        (slope,) = torch.autograd.grad(value, point)
        assert not bool(slope.any())


def test_anchors_by_hand() -> None:
    start, point = table([0.5, 0.5], [0.0, 1.0]), table([1.0, 0.25], [0.0, 2.0])
    geometry = geometry_of(start, norms=table([1.0, 2.0], [3.0, 4.0]))
    values = {
        AnchorL1(AnchorL1Config(scale="none")): (0.5 + 0.25 + 1) / 4,
        AnchorL1(AnchorL1Config()): (0.5 + 2 * 0.25 + 4 * 1) / 10,
        AnchorL2(AnchorL2Config(scale="none")): (0.25 + 0.0625 + 1) / 4,
        AnchorL2(AnchorL2Config()): (0.25 + 4 * 0.0625 + 16 * 1) / 30,
    }
    for term, wanted in values.items():
        assert float(term.value(point, geometry)) == pytest.approx(wanted, rel=1e-12)


def test_the_scaled_anchor_is_the_distance_between_merged_weights() -> None:
    """Of orthogonal deltas, in units of all their squared norms."""
    generator = torch.Generator().manual_seed(0)
    deltas = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64)).Q * table([1.0, 2.0, 0.5])
    start, point = table([0.3, 0.3, 0.3]), table([0.1, 0.9, -0.4])
    geometry = geometry_of(start, norms=deltas.norm(dim=0)[None])
    moved = (deltas @ (point - start)[0]).square().sum() / deltas.square().sum()
    torch.testing.assert_close(AnchorL2(AnchorL2Config()).value(point, geometry), moved)


def test_an_anchor_that_is_not_scaled_measures_no_norms() -> None:
    def refuse() -> Tensor:
        raise AssertionError("norms were measured")

    geometry = geometry_of(table([0.0, 1.0]))
    geometry._norms = refuse
    assert float(AnchorL1(AnchorL1Config(scale="none")).value(table([1.0, 1.0]), geometry)) == 0.5


def test_coefficients_that_multiply_nothing_are_nowhere_far_away() -> None:
    geometry = geometry_of(table([0.0, 1.0]), norms=table([0.0, 0.0]))
    assert float(AnchorL2(AnchorL2Config()).value(table([1.0, 3.0]), geometry)) == 0.0


def test_sizes_by_hand() -> None:
    point = table([3.0, -1.0], [-4.0, 0.0])
    geometry = geometry_of(torch.zeros(2, 2, dtype=torch.float64))
    assert float(L1().value(point, geometry)) == 8.0
    assert float(L2().value(point, geometry)) == 5.0 + 1.0


@pytest.mark.parametrize(
    ("point", "similarity", "overlap"),
    [
        (table([1.0, 2.0], [2.0, 4.0]), 1.0, 3.0),
        (table([1.0, 0.0], [0.0, 3.0]), 0.0, 0.0),
        (table([1.0, -1.0], [1.0, -1.0]), -1.0, 2.0),
        (table([1.0, 1.0, 0.0], [0.0, 1.0, 2.0]), (math.sqrt(0.5) + 0.0 + math.sqrt(0.5)) / 3, (1.0 + 0.0 + 1.0) / 3),
    ],
)
def test_pairs_by_hand(point: Tensor, similarity: float, overlap: float) -> None:
    geometry = geometry_of(torch.zeros_like(point))
    assert float(Similarity().value(point, geometry)) == pytest.approx(similarity, abs=1e-12)
    assert float(Overlap().value(point, geometry)) == pytest.approx(overlap, abs=1e-12)


def test_a_direction_that_is_not_used_is_similar_to_none() -> None:
    """A cosine with zero has no slope worth following; divided by a small number it would be one of 1e12."""
    point = table([0.3, 0.0], [0.1, 0.0]).requires_grad_()
    value = Similarity().value(point, geometry_of(point.detach()))
    (slope,) = torch.autograd.grad(value, point)
    assert float(value.detach()) == 0.0
    assert not bool(slope.any())


@pytest.mark.parametrize("term", [Similarity(), Overlap()])
def test_one_direction_makes_no_pair(term: CoefficientTerm) -> None:
    with pytest.raises(ConfigError, match=f"{term.name} compares .* no two of the 1 directions"):
        term.value(table([1.0], [2.0]), geometry_of(table([0.0], [0.0])))


def test_a_straight_line_is_smooth_and_a_bend_is_not() -> None:
    line = table([0.1, 5.0], [0.2, 4.0], [0.3, 3.0], [0.4, 2.0])
    geometry = geometry_of(line)
    assert float(Smoothness().value(line, geometry)) == pytest.approx(0.0, abs=1e-24)
    bent = line.clone()
    bent[1, 0] += 1.0  # second differences of -2 and 1 in one direction, 0 and 0 in the other
    assert float(Smoothness().value(bent, geometry)) == pytest.approx((4 + 1 + 0 + 0) / 4)


def test_smoothness_takes_kinds_apart_and_their_tensors_together() -> None:
    layers: list[tuple[str, int | None]] = [("embedding", None)]
    layers += [(kind, layer) for layer in range(3) for kind in ("attention", "attention", "mlp")]
    point = table([9.0], *([value] for layer in range(3) for value in (layer - 1.0, layer + 1.0, 2.0 * layer * layer)))
    # Attention has 0, 1, 2 on average, which is straight; the MLP 0, 2, 8, which bends by 4.
    assert float(Smoothness().value(point, geometry_of(point, layers=layers))) == pytest.approx((0.0 + 16.0) / 2)


def test_smoothness_passes_over_what_is_not_searched() -> None:
    point = table([0.0], [7.0], [1.0], [2.0])
    geometry = geometry_of(point)
    geometry.free[1, 0] = False
    assert float(Smoothness().value(point, geometry)) == pytest.approx(0.0)


def test_smoothness_needs_three_layers() -> None:
    with pytest.raises(ConfigError, match="no kind of tensor has searched coefficients of its own in three layers"):
        Smoothness().value(table([1.0], [2.0]), geometry_of(table([0.0], [0.0])))
    whole = geometry_of(table([0.0]), layers=[("model", None)])
    with pytest.raises(ConfigError, match="granularity layer-wise or finer"):
        Smoothness().value(table([1.0]), whole)


def test_similarity_has_no_slope_where_a_direction_is_not_used() -> None:
    coefficients = table([0.4, 0.0], [0.2, 0.0]).requires_grad_()
    value = Similarity().value(coefficients, geometry_of(coefficients.detach()))
    (slope,) = torch.autograd.grad(value, coefficients)
    assert float(value.detach()) == 0.0
    assert not bool(slope.any())
