"""WIDEN (Yu et al. 2024): scores of columns against the definition, and its properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods.optimised import WidenConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.widen import column_changes, column_scores, scores
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, random

MATRIX = TensorKind("attention", False, (8, 5))


def drawn(count: int, *shape: int, seed: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [random(generator, *shape) for _ in range(count)]


def widen(
    base: torch.Tensor, deltas: list[torch.Tensor], kind: TensorKind | None = None, **settings: object
) -> torch.Tensor:
    kinds = {"w": kind} if kind else None
    experts = {f"expert-{index}": {"w": base + delta} for index, delta in enumerate(deltas)}
    models = ToyModels({"w": base}, experts, kinds=kinds)
    return build_method(WidenConfig.model_validate(settings), models.experts).delta(models, "w")


def plainly(base: torch.Tensor, deltas: list[torch.Tensor], ratio: float, calibration: float) -> torch.Tensor:
    """Equations of the paper, on two matrices and their norms, without a tie."""
    total = torch.zeros_like(base)
    ranks: list[list[torch.Tensor]] = [[], []]
    for delta in deltas:
        tuned = base + delta
        magnitude = (tuned.norm(dim=0) - base.norm(dim=0)).abs()
        direction = 1 - torch.nn.functional.cosine_similarity(tuned, base, dim=0)
        for kind, change in enumerate((magnitude, direction)):
            order = change.argsort(stable=True)
            rank = torch.empty_like(change)
            rank[order] = torch.arange(len(change), dtype=change.dtype) / len(change)
            ranks[kind].append(rank)
    for index, delta in enumerate(deltas):
        for rank in map(torch.stack, ranks):
            score = rank.softmax(0)[index]
            above = (rank[index] * len(score)).round() > ratio * (len(score) - 1) / 2
            total += delta * torch.where(above, calibration, score) / 2
    return total


@pytest.mark.parametrize(("ratio", "calibration"), [(1.0, 1.0), (0.5, 0.4), (1.7, 0.0), (0.0, 2.0)])
def test_against_the_definition(ratio: float, calibration: float) -> None:
    base, *deltas = drawn(4, 8, 5)
    result = widen(base, deltas, MATRIX, ratio=ratio, calibration=calibration)
    torch.testing.assert_close(result, plainly(base, deltas, ratio, calibration))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_expert_is_the_merge(dtype: torch.dtype) -> None:
    models = every_kind(1, dtype=dtype)
    method = build_method(WidenConfig(), models.experts)
    for name in models.names:
        assert torch.equal(method.delta(models, name), models.task_vector("expert-0", name)), name


def test_the_scores_of_a_column_add_up_to_between_one_and_the_number_of_experts() -> None:
    base, *deltas = drawn(6, 7, 40)
    totals = column_scores(base, deltas, ratio=1.0, calibration=1.0).sum(0)
    assert totals.min() >= 1 - 1e-12
    assert totals.max() <= 5 + 1e-12
    none = column_scores(base, deltas, ratio=40.0, calibration=1.0)  # no rank is forty times the average
    torch.testing.assert_close(none.sum(0), torch.ones(40, dtype=torch.float64))


def test_copies_add_up_to_the_expert_where_important_columns_count_one_by_one() -> None:
    base, delta = drawn(2, 8, 5)
    copies = [delta] * 4
    torch.testing.assert_close(widen(base, copies, MATRIX, calibration=0.25, ratio=0.0), delta)
    gain = widen(base, copies, MATRIX) / delta  # with 1, the experts that agree on an important column are added up
    assert gain.min() >= 1 - 1e-9
    assert gain.max() <= 4 + 1e-9
    assert gain.max() > 3.9


def test_columns_in_another_order_and_turned_outputs() -> None:
    base, *deltas = drawn(4, 8, 5)
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = torch.linalg.qr(drawn(1, 8, 8, seed=9)[0]).Q
    plain = widen(base, deltas, MATRIX)
    torch.testing.assert_close(widen(base[:, order], [delta[:, order] for delta in deltas], MATRIX), plain[:, order])
    torch.testing.assert_close(widen(turned @ base, [turned @ delta for delta in deltas], MATRIX), turned @ plain)
    torch.testing.assert_close(widen(-3 * base, [-3 * delta for delta in deltas], MATRIX), -3 * plain)


def test_unchanged_columns_are_equal_in_whatever_order_they_stand() -> None:
    base, *deltas = drawn(3, 8, 5)
    deltas[0][:, [0, 2, 3]] = 0
    order = torch.tensor([3, 1, 0, 4, 2])
    plain = widen(base, deltas, MATRIX)
    torch.testing.assert_close(widen(base[:, order], [delta[:, order] for delta in deltas], MATRIX), plain[:, order])


def test_columns_without_a_direction() -> None:
    base, delta = drawn(2, 3, 4)
    base[:, 0] = 0  # it appears
    delta[:, 1] = -base[:, 1]  # it vanishes
    base[:, 2] = delta[:, 2] = 0  # it stays zero
    growth, turned = column_changes(base, delta)
    assert torch.isfinite(growth).all()
    torch.testing.assert_close(growth[0], delta[:, 0].norm())
    torch.testing.assert_close(growth[1], base[:, 1].norm())
    assert turned[:3].tolist() == pytest.approx([1.0, 1.0, 0.0], rel=1e-6)
    assert torch.isfinite(widen(base, [delta, 2 * delta])).all()


@given(st.floats(-7, 1), st.integers(0, 1000))
def test_changes_are_exact_however_small(exponent: float, seed: int) -> None:
    base, delta = drawn(2, 6, 3, seed=seed)
    delta *= 10**exponent
    growth, turned = column_changes(base.float(), delta.float())
    u, v = base.float().double(), base.float().double() + delta.float().double()
    unit = torch.nn.functional.normalize(u, dim=0) - torch.nn.functional.normalize(v, dim=0)
    torch.testing.assert_close(growth, (v.norm(dim=0) - u.norm(dim=0)).abs(), rtol=1e-4, atol=3e-7 * 10**exponent)
    torch.testing.assert_close(turned, unit.square().sum(0) / 2, rtol=1e-4, atol=1e-15)


def test_vectors_are_scored_by_magnitude() -> None:
    base, *deltas = drawn(3, 6)
    result = widen(base, deltas)
    magnitudes = torch.stack(deltas).abs()
    factors = magnitudes.softmax(0)
    factors[magnitudes > magnitudes.mean(1, keepdim=True)] = 1.0
    torch.testing.assert_close(result, (factors * torch.stack(deltas)).sum(0))


def test_nothing_is_important_to_an_expert_that_changed_nothing() -> None:
    assert torch.equal(scores(torch.zeros(2, 3), ratio=1.0, calibration=1.0), torch.full((2, 3), 0.5))


def test_stored_turned_stacked_or_as_a_convolution() -> None:
    base, *deltas = drawn(3, 8, 5)
    plain = widen(base, deltas, MATRIX)
    turned = widen(base.mT.contiguous(), [delta.mT.contiguous() for delta in deltas], TensorKind("mlp", True, (5, 8)))
    torch.testing.assert_close(turned.mT, plain)
    stack = [torch.stack([tensor, tensor.flip(0)]) for tensor in (base, *deltas)]
    stacked = widen(stack[0], stack[1:], TensorKind("mlp", False, (2, 8, 5)))
    torch.testing.assert_close(stacked, torch.stack([plain, plain.flip(0)]))
    base, *deltas = drawn(3, 6, 3, 2, 2)
    convolved = widen(base, deltas, TensorKind("attention", False, (6, 3, 2, 2)))
    flat = widen(base.flatten(1), [delta.flatten(1) for delta in deltas], TensorKind("attention", False, (6, 12)))
    torch.testing.assert_close(convolved, flat.reshape(base.shape))


def test_a_column_of_an_embedding_is_a_token() -> None:
    base, *deltas = drawn(3, 8, 5)
    embedded = widen(base, deltas, TensorKind("embedding", False, (8, 5)))
    turned = widen(base.mT.contiguous(), [delta.mT.contiguous() for delta in deltas], TensorKind("mlp", False, (5, 8)))
    torch.testing.assert_close(embedded, turned.mT)
    head = widen(base, deltas, TensorKind("head", False, (8, 5)))
    torch.testing.assert_close(head, widen(base, deltas, MATRIX))
    tokens = [widen(base, deltas, TensorKind("embedding", False, (8, 5)), embeddings=rule) for rule in ("mean", "sum")]
    torch.testing.assert_close(tokens[0] * 2, tokens[1])
    torch.testing.assert_close(tokens[1], deltas[0] + deltas[1])


def test_other_rules_for_what_is_no_matrix() -> None:
    models = every_kind(2)
    for name in (name for name, kind in KINDS.items() if kind.structure == "vector"):
        total = models.task_vector("expert-0", name) + models.task_vector("expert-1", name)
        for rule, factor in (("mean", 0.5), ("sum", 1.0), ("base", 0.0)):
            method = build_method(WidenConfig.model_validate({"others": rule}), models.experts)
            torch.testing.assert_close(method.delta(models, name), factor * total)
