"""The second version of WUDI (Wei et al. 2025, OptMerge): as its authors' code computes it, and its limits."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from optmerge.config.methods.optimised import Wudi2Config, WudiConfig
from optmerge.merging.methods import TensorKind, build_method
from tests.merging.methods.test_wudi import drawn
from tests.merging.methods.toy import of_deltas

Experts = Literal["full", "adapters"]
both = pytest.mark.parametrize("experts", ["full", "adapters"])


def wudi_2(deltas: list[torch.Tensor], kind: TensorKind | None = None, **given: object) -> torch.Tensor:
    models = of_deltas([{"w": delta} for delta in deltas], kinds={"w": kind} if kind else None)
    return build_method(Wudi2Config.model_validate(given), models.experts).delta(models, "w")


def leading(matrix: torch.Tensor, kept: int) -> torch.Tensor:
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    truncated: torch.Tensor = (u[:, :kept] * sigma[:kept]) @ vh[:kept]
    return truncated


def loss(merged: torch.Tensor, task_vectors: list[torch.Tensor], experts: Experts) -> torch.Tensor:
    kept = min(task_vectors[0].shape) // len(task_vectors)
    mean = torch.stack(task_vectors).mean(0)
    total = torch.zeros((), dtype=merged.dtype)
    for tau in task_vectors:
        target = leading(tau - mean, kept) + mean if experts == "full" else leading(tau, kept)
        total = total + ((merged - target) @ leading(tau, kept).mT).square().sum() / tau.square().sum()
    return total


@both
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (3, 40)])
def test_against_autograd(experts: Experts, shape: tuple[int, int]) -> None:
    task_vectors = drawn(3, *shape)
    merged = torch.nn.Parameter(torch.stack(task_vectors).sum(0) / (1 if experts == "full" else 3))
    optimiser: torch.optim.Optimizer
    if experts == "full":
        optimiser = torch.optim.Adam([merged], lr=1e-4)
    else:
        optimiser = torch.optim.SGD([merged], lr=0.05, momentum=0.9)
    for _ in range(40):
        (merged.grad,) = torch.autograd.grad(loss(merged, task_vectors, experts), merged)
        optimiser.step()
    ours = wudi_2(task_vectors, experts=experts, steps=40, lr=1e-4 if experts == "full" else 0.05)
    torch.testing.assert_close(ours, merged.detach(), rtol=0, atol=1e-9)


@both
def test_the_loss_never_rises(experts: Experts) -> None:
    task_vectors = drawn(3, 12, 9)
    merges = [wudi_2(task_vectors, experts=experts, steps=steps) for steps in range(0, 301, 50)]
    losses = [float(loss(merged, task_vectors, experts)) for merged in merges]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


@both
def test_no_steps_are_the_start(experts: Experts) -> None:
    task_vectors = drawn(3, 8, 6)
    total = torch.stack(task_vectors).sum(0)
    torch.testing.assert_close(wudi_2(task_vectors, experts=experts, steps=0), total / (1 if experts == "full" else 3))


def test_with_all_components_it_is_the_first_version() -> None:
    task_vectors = drawn(3, 8, 6)
    models = of_deltas([{"w": delta} for delta in task_vectors])
    first = build_method(WudiConfig(), models.experts).delta(models, "w")
    torch.testing.assert_close(wudi_2(task_vectors, ranks=3.0), first, rtol=0, atol=1e-9)


@both
def test_rows_columns_and_experts_in_another_order(experts: Experts) -> None:
    task_vectors = drawn(3, 6, 5)
    rows, columns = torch.tensor([2, 5, 0, 1, 4, 3]), torch.tensor([4, 2, 0, 1, 3])
    plain = wudi_2(task_vectors, TensorKind("mlp", False, (6, 5)), experts=experts)
    shuffled = wudi_2([tau[rows][:, columns] for tau in task_vectors], experts=experts)
    torch.testing.assert_close(shuffled, plain[rows][:, columns], rtol=0, atol=1e-9)
    torch.testing.assert_close(wudi_2(task_vectors[::-1], experts=experts), plain, rtol=0, atol=1e-9)
    turned = [tau.mT.contiguous() for tau in task_vectors]
    stored = wudi_2(turned, TensorKind("mlp", True, (5, 6)), experts=experts)
    torch.testing.assert_close(stored.mT, plain, rtol=0, atol=1e-9)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_below_the_tolerance_changes_little(experts: Experts, dtype: torch.dtype) -> None:
    """Adapters of rank 1 keep more components than they have: those of rounding are cut."""
    left, right = drawn(2, 12, 1, scale=0.3), drawn(2, 1, 9, scale=0.3, seed=8)
    low = [a @ b for a, b in zip(left, right, strict=True)]
    noisy = [tau + noise for tau, noise in zip(low, drawn(2, 12, 9, scale=1e-12, seed=2), strict=True)]
    first, second = (wudi_2([tau.to(dtype) for tau in taus], experts=experts) for taus in (low, noisy))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
