"""WUDI (Cheng et al. 2025): its loss, both solvers, and what they keep."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.config.methods.optimised import WudiConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.descent import Adam
from optmerge.merging.methods.gram_solve import gram_mean
from optmerge.merging.methods.wudi import descend as descend_in
from optmerge.merging.methods.wudi import interference, minimum
from tests.merging.methods.toy import KINDS, every_kind, merged_vectors, random


def drawn(count: int, *shape: int, seed: int = 6, scale: float = 0.01) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * random(generator, *shape) for _ in range(count)]


def descend(task_vectors: list[torch.Tensor], *, steps: int, lr: float) -> torch.Tensor:
    return descend_in(interference(task_vectors), steps=steps, optimiser=partial(Adam, lr=lr))


def solve(task_vectors: list[torch.Tensor], *, tolerance: float) -> torch.Tensor:
    return minimum(interference(task_vectors), tolerance=tolerance)


def loss(merged: torch.Tensor, task_vectors: list[torch.Tensor]) -> torch.Tensor:
    """What the paper minimises."""
    terms = [((merged - tau) @ tau.mT).square().sum() / tau.square().sum() for tau in task_vectors]
    return torch.stack(terms).sum()


def wudi(deltas: list[torch.Tensor], kind: TensorKind | None = None, **given: object) -> torch.Tensor:
    return merged_vectors(WudiConfig.model_validate(given), deltas, kind)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (3, 40)])  # the last without a Gram matrix
def test_adam_is_adam_on_the_loss(shape: tuple[int, int]) -> None:
    task_vectors = drawn(3, *shape)
    merged = torch.nn.Parameter(torch.stack(task_vectors).sum(0))
    adam = torch.optim.Adam([merged], lr=1e-4)
    for _ in range(50):
        (merged.grad,) = torch.autograd.grad(loss(merged, task_vectors), merged)
        adam.step()
    torch.testing.assert_close(descend(task_vectors, steps=50, lr=1e-4), merged.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (3, 40)])
def test_the_loss_never_rises(shape: tuple[int, int], dtype: torch.dtype) -> None:
    task_vectors = [tau.to(dtype) for tau in drawn(3, *shape)]
    losses = [float(loss(descend(task_vectors, steps=steps, lr=1e-5), task_vectors)) for steps in range(0, 301, 20)]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert float(loss(solve(task_vectors, tolerance=1e-6), task_vectors)) < losses[-1]


def test_many_steps_come_to_the_exact_minimum() -> None:
    task_vectors = drawn(2, 8, 5)
    exact = loss(solve(task_vectors, tolerance=1e-6), task_vectors)
    assert loss(descend(task_vectors, steps=300, lr=1e-5), task_vectors) > 1.2 * exact
    torch.testing.assert_close(loss(descend(task_vectors, steps=3000, lr=1e-4), task_vectors), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (2, 9)])
def test_the_exact_solver_is_at_the_minimum_and_points_where_the_task_vectors_do(shape: tuple[int, int]) -> None:
    task_vectors = drawn(3, *shape)
    exact = solve(task_vectors, tolerance=1e-6)
    merged = exact.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(merged, task_vectors), merged)
    assert gradient.abs().max() < 1e-10
    rows = torch.linalg.svd(torch.cat(task_vectors), full_matrices=False).Vh
    torch.testing.assert_close(exact @ rows.mT @ rows, exact)


def test_the_exact_solver_is_the_mean_by_gram_matrices() -> None:
    task_vectors = drawn(3, 6, 9)
    grams = [tau.mT @ tau / tau.square().sum() for tau in task_vectors]
    mean = gram_mean(task_vectors, grams, [1.0] * 3, shrink=1.0, ridge=0.0)
    torch.testing.assert_close(mean, solve(task_vectors, tolerance=1e-6))


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_the_exact_minimum_turns_and_scales_with_the_task_vectors(seed: int) -> None:
    task_vectors = drawn(2, 6, 5, seed=seed)
    left, right = (torch.linalg.qr(drawn(1, size, size, seed=seed + 1)[0]).Q for size in (6, 5))
    exact = solve(task_vectors, tolerance=1e-6)
    turned = solve([left @ tau @ right for tau in task_vectors], tolerance=1e-6)
    torch.testing.assert_close(turned, left @ exact @ right, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(solve([-7 * tau for tau in task_vectors], tolerance=1e-6), -7 * exact)


def test_adam_scales_where_its_rate_does() -> None:
    task_vectors = drawn(3, 6, 5, scale=1.0)
    plain = descend(task_vectors, steps=40, lr=1e-3)
    scaled = descend([5 * tau for tau in task_vectors], steps=40, lr=5e-3)
    torch.testing.assert_close(scaled, 5 * plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(descend([-tau for tau in task_vectors], steps=40, lr=1e-3), -plain)


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_rows_columns_and_experts_in_another_order(solver: str) -> None:
    task_vectors = drawn(3, 6, 5)
    rows, columns = torch.tensor([2, 5, 0, 1, 4, 3]), torch.tensor([4, 2, 0, 1, 3])
    kind, turned = TensorKind("mlp", False, (6, 5)), TensorKind("mlp", True, (5, 6))
    plain = wudi(task_vectors, kind, solver=solver)
    shuffled = wudi([tau[rows][:, columns] for tau in task_vectors], kind, solver=solver)
    torch.testing.assert_close(shuffled, plain[rows][:, columns], rtol=0, atol=1e-9)
    torch.testing.assert_close(wudi(task_vectors[::-1], kind, solver=solver), plain, rtol=0, atol=1e-9)
    stored = wudi([tau.mT.contiguous() for tau in task_vectors], turned, solver=solver)
    torch.testing.assert_close(stored.mT, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_one_expert_is_the_merge(solver: str) -> None:
    models = every_kind(1)
    method = build_method(
        WudiConfig.model_validate({"solver": solver, "embeddings": "matrix", "others": "sum"}), models.experts
    )
    for name in models.names:
        delta = method.delta(models, name)
        torch.testing.assert_close(delta, models.task_vector("expert-0", name), rtol=0, atol=1e-6, msg=name)


def test_copies_are_the_expert_by_the_exact_solver() -> None:
    (tau,) = drawn(1, 6, 9)
    torch.testing.assert_close(wudi([tau] * 4, solver="exact"), tau)


def test_experts_with_inputs_of_their_own_are_added_up() -> None:
    first, second = drawn(2, 6, 8)
    first[:, 4:] = second[:, :4] = 0
    for solver in ("adam", "exact"):  # no interference: the sum is the minimum
        torch.testing.assert_close(wudi([first, second], solver=solver), first + second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_noise_below_the_tolerance_changes_nothing(solver: str) -> None:
    """Task vectors of rank 2, as from LoRA: what lies outside is rounding, and stays what it is in their sum."""
    left, right = drawn(3, 12, 2, scale=0.1), drawn(3, 2, 9, scale=0.1, seed=8)
    low = [a @ b for a, b in zip(left, right, strict=True)]
    noisy = [tau + noise for tau, noise in zip(low, drawn(3, 12, 9, scale=1e-12, seed=2), strict=True)]
    torch.testing.assert_close(wudi(noisy, solver=solver), wudi(low, solver=solver), rtol=0, atol=1e-6)


def test_no_steps_are_task_arithmetic_and_weights_scale_what_goes_in() -> None:
    task_vectors = drawn(3, 6, 5)
    weights = {"expert-0": 0.5, "expert-2": 0.0}
    torch.testing.assert_close(wudi(task_vectors, steps=0, weights=weights), 0.5 * task_vectors[0] + task_vectors[1])
    halved = [0.5 * task_vectors[0], task_vectors[1]]
    for solver in ("adam", "exact"):
        torch.testing.assert_close(
            wudi(task_vectors, solver=solver, weights=weights), wudi(halved, solver=solver), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("solver", ["adam", "exact"])
def test_stacks_matrix_by_matrix_and_convolutions_as_matrices(solver: str) -> None:
    task_vectors = drawn(2, 3, 6, 5)
    stacked = wudi(task_vectors, TensorKind("mlp", False, (3, 6, 5)), solver=solver)
    for index in range(3):
        alone = wudi([tau[index] for tau in task_vectors], solver=solver)
        torch.testing.assert_close(stacked[index], alone, rtol=0, atol=1e-12)
    convolved = wudi(task_vectors, TensorKind("attention", False, (3, 6, 5)), solver=solver)
    flat = wudi([tau.flatten(1) for tau in task_vectors], solver=solver)
    torch.testing.assert_close(convolved.flatten(1), flat, rtol=0, atol=1e-12)


def test_rules_for_what_is_no_linear_layer() -> None:
    models = every_kind(2, dtype=torch.bfloat16)
    for name, kind in KINDS.items():
        total = models.task_vector("expert-0", name) + models.task_vector("expert-1", name)
        vector, embedding = kind.structure == "vector", kind.role in ("embedding", "head")
        if not vector and not embedding:
            continue
        for rule, factor in (("mean", 0.5), ("sum", 1.0), ("base", 0.0)):
            config = WudiConfig.model_validate({"others" if vector else "embeddings": rule})
            torch.testing.assert_close(build_method(config, models.experts).delta(models, name), factor * total)
