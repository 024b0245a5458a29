"""Iso-C (Marczak et al. 2025) and TSV-M (Gargiulo et al. 2025): published properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from optmerge.config.methods import IsoCConfig, TsvMConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.frames import whitened_parts
from optmerge.merging.methods.spectrum import cut_svd, flatten_spectrum, polar
from tests.merging.methods.toy import of_deltas, random

Merge = Callable[..., torch.Tensor]


def deltas(count: int, *shape: int, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [random(generator, *shape) for _ in range(count)]


def merged(
    config: type[IsoCConfig | TsvMConfig], kind: TensorKind | None, values: list[torch.Tensor], settings: Any
) -> torch.Tensor:
    models = of_deltas([{"w": value} for value in values], kinds={"w": kind} if kind else None)
    return build_method(config.model_validate(settings), models.experts).delta(models, "w")


def iso_c(values: list[torch.Tensor], kind: TensorKind | None = None, **settings: Any) -> torch.Tensor:
    return merged(IsoCConfig, kind, values, settings)


def tsv_m(values: list[torch.Tensor], kind: TensorKind | None = None, **settings: Any) -> torch.Tensor:
    return merged(TsvMConfig, kind, values, settings)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (5, 5)])
def test_iso_c_flattens_the_spectrum_and_keeps_the_nuclear_norm(shape: tuple[int, int]) -> None:
    matrices = deltas(3, *shape)
    total = torch.stack(matrices).sum(0)
    sigma = torch.linalg.svdvals(iso_c(matrices))
    torch.testing.assert_close(sigma, torch.full_like(sigma, torch.linalg.svdvals(total).mean().item()))
    torch.testing.assert_close(sigma.sum(), torch.linalg.svdvals(total).sum())


@pytest.mark.parametrize("merge", [iso_c, tsv_m])
def test_equivariant_under_rotations_and_scale_and_indifferent_to_order(merge: Merge) -> None:
    matrices = deltas(2, 9, 6)
    left = torch.linalg.qr(deltas(1, 9, 9)[0]).Q
    right = torch.linalg.qr(deltas(1, 6, 6)[0]).Q
    torch.testing.assert_close(merge([left @ m @ right for m in matrices]), left @ merge(matrices) @ right)
    torch.testing.assert_close(merge([2.5 * m for m in matrices]), 2.5 * merge(matrices))
    torch.testing.assert_close(merge([-m for m in matrices]), -merge(matrices))
    torch.testing.assert_close(merge(matrices[::-1]), merge(matrices))
    torch.testing.assert_close(merge([m.mT for m in matrices]), merge(matrices).mT)


def test_a_rank_deficient_sum_is_stable() -> None:
    a, b = deltas(1, 20, 3)[0], deltas(1, 3, 15)[0]
    noise = 1e-12 * deltas(1, 20, 15)[0]
    clean, noisy = (flatten_spectrum(m, tolerance=1e-6) for m in (a @ b, a @ b + noise))
    assert torch.linalg.norm(clean - noisy) / torch.linalg.norm(clean) < 1e-9
    assert torch.linalg.matrix_rank(clean) == 3


def test_the_cut_svd_gives_the_matrix_back_and_zeros_what_is_cut() -> None:
    a, b = deltas(1, 8, 2)[0], deltas(1, 2, 6)[0]
    u, sigma, vh = cut_svd(a @ b, tolerance=1e-6)
    torch.testing.assert_close((u * sigma) @ vh, a @ b)
    assert sigma.count_nonzero() == 2
    assert not u[:, 2:].any()
    assert not vh[2:].any()
    assert not polar(torch.zeros(3, 4), tolerance=1e-6).any()


def test_tsv_m_of_one_expert_is_the_expert() -> None:
    (matrix,) = deltas(1, 9, 7)
    torch.testing.assert_close(tsv_m([matrix]), matrix)


def test_tsv_m_of_orthogonal_experts_is_their_sum() -> None:
    left = torch.linalg.qr(deltas(1, 12, 12)[0]).Q
    right = torch.linalg.qr(deltas(1, 9, 9)[0]).Q
    matrices = [
        left[:, 3 * i : 3 * i + 3] @ torch.diag(torch.tensor([3.0, 2.0, 1.0 + i]).double()) @ right[3 * i : 3 * i + 3]
        for i in range(3)
    ]
    torch.testing.assert_close(tsv_m(matrices), torch.stack(matrices).sum(0))


def test_tsv_m_of_identical_experts_is_the_experts_leading_part() -> None:
    (matrix,) = deltas(1, 10, 8)
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    for count in (2, 4):
        rank = 8 // count
        torch.testing.assert_close(tsv_m([matrix] * count), (u[:, :rank] * sigma[:rank]) @ vh[:rank])


def test_scaling_an_expert_scales_its_part_alone() -> None:
    matrices = deltas(3, 12, 9)
    parts = whitened_parts(matrices, tolerance=1e-6)
    scaled = whitened_parts([matrices[0], 4 * matrices[1], -matrices[2]], tolerance=1e-6)
    for part, other, factor in zip(parts, scaled, (1, 4, -1), strict=True):
        torch.testing.assert_close(factor * part, other)
    weights = {"expert-0": 1.0, "expert-1": 4.0, "expert-2": -1.0}
    torch.testing.assert_close(tsv_m(matrices, weights=weights), sum(scaled))


def test_more_experts_than_ranks() -> None:
    matrices = deltas(5, 3, 8)
    assert torch.linalg.matrix_rank(tsv_m(matrices)) == 3
    torch.testing.assert_close(tsv_m(matrices[::-1]), tsv_m(matrices))


@pytest.mark.parametrize("merge", [iso_c, tsv_m])
def test_vectors_by_the_rule_and_zero_stays_zero(merge: Merge) -> None:
    vectors = deltas(4, 8)
    torch.testing.assert_close(merge(vectors), torch.stack(vectors).mean(0))
    torch.testing.assert_close(merge(vectors, others="sum"), torch.stack(vectors).sum(0))
    assert not merge(vectors, others="base").any()
    assert not merge([torch.zeros(6, 4), torch.zeros(6, 4)]).any()


@pytest.mark.parametrize("merge", [iso_c, tsv_m])
def test_embeddings_and_heads_by_the_rule(merge: Merge) -> None:
    matrices = deltas(2, 8, 5)
    for role in ("embedding", "head"):
        kind = TensorKind(role, False, (8, 5))
        torch.testing.assert_close(merge(matrices, kind), merge(matrices))
        torch.testing.assert_close(merge(matrices, kind, embeddings="mean"), torch.stack(matrices).mean(0))
    inside = TensorKind("mlp", False, (8, 5))
    torch.testing.assert_close(merge(matrices, inside, embeddings="mean"), merge(matrices))


@pytest.mark.parametrize("merge", [iso_c, tsv_m])
def test_stacks_matrix_by_matrix_and_convolutions_as_one(merge: Merge) -> None:
    stacks = deltas(2, 4, 6, 5)
    stacks[0][1] = stacks[1][1] = 0  # an expert that was never routed to
    result = merge(stacks, TensorKind("mlp", False, (4, 6, 5)))
    torch.testing.assert_close(result, torch.stack([merge([stack[i] for stack in stacks]) for i in range(4)]))
    kernels = deltas(2, 6, 3, 2, 2)
    expected = merge([kernel.flatten(1) for kernel in kernels]).reshape(6, 3, 2, 2)
    torch.testing.assert_close(merge(kernels, TensorKind("embedding", False, (6, 3, 2, 2))), expected)


def test_bf16_is_computed_in_fp32() -> None:
    half = [matrix.bfloat16() for matrix in deltas(2, 6, 4)]
    assert iso_c(half).dtype == torch.float32
