"""DOGE (Wei et al. 2025): the descent against autograd, the projection, the trim over all matrices, and limits."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from optmerge.config.methods.optimised import DogeConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.doge import shared_change, shared_subspace
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, merged_vectors, of_deltas, random

Project = Literal["gradient", "update"]
both = pytest.mark.parametrize("project", ["gradient", "update"])


def drawn(count: int, *shape: int, seed: int = 7, scale: float = 0.02) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * random(generator, *shape) for _ in range(count)]


def scales(task_vectors: list[torch.Tensor], eta: float = 0.07) -> list[float]:
    return [eta / float(tau.norm()) for tau in task_vectors]


def loss(change: torch.Tensor, task_vectors: list[torch.Tensor], factors: list[float]) -> torch.Tensor:
    together = sum(factor * (tau + change) for factor, tau in zip(factors, task_vectors, strict=True))
    return torch.stack([(tau * (tau - together)).sum(1).square().sum() for tau in task_vectors]).sum()


def doge(deltas: list[torch.Tensor], kind: TensorKind | None = None, **settings: object) -> torch.Tensor:
    return merged_vectors(DogeConfig.model_validate(settings), deltas, kind)


def test_the_descent_is_adam_on_projected_gradients() -> None:
    task_vectors = drawn(3, 12, 9)
    factors, subspace = scales(task_vectors), shared_subspace(drawn(3, 12, 9), divisor=4, tolerance=1e-6)
    change = torch.nn.Parameter(torch.zeros_like(task_vectors[0]))
    adam = torch.optim.Adam([change], lr=1e-3)
    for _ in range(30):
        (gradient,) = torch.autograd.grad(loss(change, task_vectors, factors), change)
        change.grad = gradient - subspace @ subspace.mT @ gradient
        adam.step()
    ours = shared_change(task_vectors, factors, subspace, project="gradient", steps=30, lr=1e-3)
    torch.testing.assert_close(ours, change.detach(), rtol=0, atol=1e-9)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_never_rises(project: Project, dtype: torch.dtype) -> None:
    task_vectors = [tau.to(dtype) for tau in drawn(3, 24, 18)]
    factors, subspace = scales(task_vectors), shared_subspace(task_vectors, divisor=6, tolerance=1e-6)
    losses = []
    for steps in range(0, 401, 25):
        change = shared_change(task_vectors, factors, subspace, project=project, steps=steps, lr=1e-4)
        losses.append(float(loss(change.double(), [tau.double() for tau in task_vectors], factors)))
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


def test_only_projected_updates_keep_out_of_the_shared_subspace() -> None:
    task_vectors = drawn(3, 24, 18)
    factors, subspace = scales(task_vectors), shared_subspace(task_vectors, divisor=6, tolerance=1e-6)
    assert subspace.shape == (24, 3)
    inside = {}
    for project in ("gradient", "update"):
        change = shared_change(task_vectors, factors, subspace, project=project, steps=400, lr=1e-4)
        inside[project] = float((subspace.mT @ change).norm() / change.norm())
    assert inside["update"] < 1e-12
    assert inside["gradient"] > 0.05  # Adam's scaling of single entries leads back into it


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_the_shared_subspace(shape: tuple[int, int]) -> None:
    task_vectors = drawn(2, *shape)
    basis = shared_subspace(task_vectors, divisor=4, tolerance=1e-6)
    assert basis.shape == (shape[0], 2)
    leading = torch.cat([torch.linalg.svd(tau, full_matrices=False).U[:, :4] for tau in task_vectors], dim=1)
    expected = torch.linalg.svd(leading, full_matrices=False).U[:, :2]
    torch.testing.assert_close(basis @ basis.mT, expected @ expected.mT)
    assert shared_subspace(task_vectors, divisor=100, tolerance=1e-6).shape == (shape[0], 0)
    zero = torch.zeros(shape)
    assert shared_subspace([zero, zero], divisor=1, tolerance=1e-6).shape == (shape[0], 0)


def test_the_shared_subspace_of_equal_experts_is_all_of_theirs() -> None:
    (tau,) = drawn(1, 9, 6)
    for copies in (1, 2, 3):
        basis = shared_subspace([tau + 1e-13 * noise for noise in drawn(copies, 9, 6)], divisor=6, tolerance=1e-6)
        leading = torch.linalg.svd(tau, full_matrices=False).U[:, : 6 // copies]
        torch.testing.assert_close(basis @ basis.mT, leading @ leading.mT, rtol=0, atol=1e-9)


def test_without_steps_and_trim_every_expert_has_the_same_norm() -> None:
    task_vectors = drawn(3, 8, 5)
    expected = sum(0.2 * tau / tau.norm() for tau in task_vectors)
    torch.testing.assert_close(doge(task_vectors, steps=0, density=1.0, eta=0.2), expected)
    louder = [100 * task_vectors[0], *task_vectors[1:]]
    torch.testing.assert_close(doge(louder, steps=0, density=1.0, eta=0.2), expected)
    weighted = doge(task_vectors, steps=0, density=1.0, eta=0.2, weights={"expert-0": -0.5, "expert-1": 0.0})
    torch.testing.assert_close(
        weighted, 0.2 * task_vectors[2] / task_vectors[2].norm() - 0.1 * task_vectors[0] / task_vectors[0].norm()
    )


@both
def test_the_change_is_shared_and_what_is_trimmed_of_an_expert_has_none_of_it(project: Project) -> None:
    task_vectors = drawn(2, 12, 10)
    factors, subspace = scales(task_vectors), shared_subspace(task_vectors, divisor=6, tolerance=1e-6)
    change = shared_change(task_vectors, factors, subspace, project=project, steps=50, lr=1e-3)
    expected = torch.zeros_like(change)
    for tau, factor in zip(task_vectors, factors, strict=True):
        edge = tau.abs().flatten().sort(descending=True).values[35]  # 36 of 120
        expected += factor * (tau + change) * (tau.abs() >= edge)
    torch.testing.assert_close(doge(task_vectors, project=project, steps=50, lr=1e-3, scope="tensor"), expected)


def test_what_an_expert_has_not_changed_is_none_of_its_largest() -> None:
    sparse, dense = drawn(2, 12, 10)
    sparse[:, 2:] = 0  # a fifth of it is left, and density .3 asks for more
    factors = scales([sparse, dense])
    subspace = shared_subspace([sparse, dense], divisor=6, tolerance=1e-6)
    change = shared_change([sparse, dense], factors, subspace, project="gradient", steps=50, lr=1e-3)
    edge = dense.abs().flatten().sort(descending=True).values[35]
    kept = [sparse != 0, dense.abs() >= edge]
    expected = sum(
        factor * (tau + change) * mask for factor, tau, mask in zip(factors, (sparse, dense), kept, strict=True)
    )
    torch.testing.assert_close(doge([sparse, dense], steps=50, lr=1e-3, scope="tensor"), expected)


def test_the_largest_are_chosen_among_the_matrices_of_the_model() -> None:
    """Norms and embeddings have far larger entries here, and are no part of the choice."""
    (small, large), (norm,), (tokens,) = drawn(2, 8, 5), drawn(1, 40, scale=9.0), drawn(1, 20, 6, scale=9.0)
    deltas = {"small": small, "large": 3 * large, "norm": norm, "embed": tokens}
    kinds = {name: TensorKind("mlp", False, tuple(value.shape)) for name, value in deltas.items()}
    kinds["embed"] = TensorKind("embedding", False, (20, 6))
    models = of_deltas([deltas], kinds=kinds)
    method = build_method(DogeConfig(steps=0, density=0.25), models.experts)
    told: list[tuple[str, int, int | None]] = []
    method.prepare(models, lambda what, done, of: told.append((what, done, of)))
    assert told == [("thresholds", 1, 1)]
    kept = torch.cat([method.delta(models, name).flatten() != 0 for name in ("small", "large")])
    order = torch.cat([small.flatten(), 3 * large.flatten()]).abs().argsort(descending=True)
    assert set(kept.nonzero().flatten().tolist()) == set(order[:20].tolist())
    assert not torch.count_nonzero(method.delta(models, "norm"))
    assert not torch.count_nonzero(method.delta(models, "embed"))


@pytest.mark.parametrize("scope", ["model", "tensor", "row", "stacked"])
def test_stored_turned(scope: str) -> None:
    task_vectors = drawn(3, 8, 6)
    plain = doge(task_vectors, TensorKind("mlp", False, (8, 6)), scope=scope)
    stored = doge([tau.mT.contiguous() for tau in task_vectors], TensorKind("mlp", True, (6, 8)), scope=scope)
    torch.testing.assert_close(stored.mT, plain, rtol=0, atol=1e-9)


@both
def test_rows_columns_and_experts_in_another_order(project: Project) -> None:
    task_vectors = drawn(3, 8, 6)
    rows, columns = torch.tensor([2, 5, 0, 1, 7, 4, 3, 6]), torch.tensor([4, 2, 0, 5, 1, 3])
    plain = doge(task_vectors, project=project)
    shuffled = doge([tau[rows][:, columns] for tau in task_vectors], project=project)
    torch.testing.assert_close(shuffled, plain[rows][:, columns], rtol=0, atol=1e-7)
    torch.testing.assert_close(doge(task_vectors[::-1], project=project), plain, rtol=0, atol=1e-7)
    torch.testing.assert_close(doge([-tau for tau in task_vectors], project=project), -plain)


def test_stacks_matrix_by_matrix_and_convolutions_as_matrices() -> None:
    task_vectors = drawn(2, 3, 8, 6)
    stacked = doge(task_vectors, TensorKind("mlp", False, (3, 8, 6)), density=1.0)
    for index in range(3):
        torch.testing.assert_close(stacked[index], doge([tau[index] for tau in task_vectors], density=1.0))
    convolved = doge(task_vectors, TensorKind("attention", False, (3, 8, 6)), density=1.0)
    torch.testing.assert_close(convolved.flatten(1), doge([tau.flatten(1) for tau in task_vectors], density=1.0))


def test_an_expert_that_is_the_base_has_no_part() -> None:
    first, second = drawn(2, 8, 6)
    merged = doge([first, torch.zeros_like(first), second], density=1.0)
    factors = scales([first, second])
    subspace = shared_subspace([first, torch.zeros_like(first), second], divisor=6, tolerance=1e-6)
    change = shared_change([first, second], factors, subspace, project="gradient", steps=400, lr=1e-4)
    torch.testing.assert_close(merged, factors[0] * (first + change) + factors[1] * (second + change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rules_for_what_is_no_linear_layer(dtype: torch.dtype) -> None:
    models: ToyModels = every_kind(2, dtype=dtype)
    for name, kind in KINDS.items():
        total = models.task_vector("expert-0", name) + models.task_vector("expert-1", name)
        vector, embedding = kind.structure == "vector", kind.role in ("embedding", "head")
        if not vector and not embedding:
            continue
        for rule, factor in (("mean", 0.5), ("sum", 1.0), ("base", 0.0)):
            config = DogeConfig.model_validate({"others" if vector else "embeddings": rule})
            torch.testing.assert_close(build_method(config, models.experts).delta(models, name), factor * total)
