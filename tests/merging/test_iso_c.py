"""Iso-C's published properties (Marczak et al. 2025)."""

from __future__ import annotations

import pytest
import torch

from optmerge.merging.iso_c import flatten_spectrum, iso_c


def deltas(count: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (5, 5)])
def test_the_spectrum_is_flat_and_the_nuclear_norm_kept(shape: tuple[int, int]) -> None:
    matrices = deltas(3, *shape)
    total = torch.stack(matrices).sum(0)
    sigma = torch.linalg.svdvals(iso_c(matrices))
    torch.testing.assert_close(sigma, torch.full_like(sigma, torch.linalg.svdvals(total).mean().item()))
    torch.testing.assert_close(sigma.sum(), torch.linalg.svdvals(total).sum())


def test_equivariant_under_rotations_and_scale() -> None:
    matrices = deltas(2, 9, 6)
    left = torch.linalg.qr(deltas(1, 9, 9)[0]).Q
    right = torch.linalg.qr(deltas(1, 6, 6)[0]).Q
    torch.testing.assert_close(iso_c([left @ m @ right for m in matrices]), left @ iso_c(matrices) @ right)
    torch.testing.assert_close(iso_c([2.5 * m for m in matrices]), 2.5 * iso_c(matrices))
    torch.testing.assert_close(iso_c(matrices[::-1]), iso_c(matrices))


def test_a_rank_deficient_sum_is_stable() -> None:
    a, b = deltas(1, 20, 3)[0], deltas(1, 3, 15)[0]
    noise = 1e-12 * deltas(1, 20, 15)[0]
    clean, noisy = flatten_spectrum(a @ b), flatten_spectrum(a @ b + noise)
    assert torch.linalg.norm(clean - noisy) / torch.linalg.norm(clean) < 1e-9
    assert torch.linalg.matrix_rank(clean) == 3


def test_vectors_are_averaged_and_zero_stays_zero() -> None:
    vectors = deltas(4, 8)
    torch.testing.assert_close(iso_c(vectors), torch.stack(vectors).mean(0))
    assert not iso_c([torch.zeros(6, 4), torch.zeros(6, 4)]).any()


def test_a_stack_of_matrices_is_treated_matrix_by_matrix() -> None:
    stacks = deltas(2, 4, 6, 5)
    expected = torch.stack([iso_c([stack[i] for stack in stacks]) for i in range(4)])
    torch.testing.assert_close(iso_c(stacks), expected)


def test_bf16_deltas_are_computed_in_fp32() -> None:
    assert iso_c(deltas(2, 6, 4, dtype=torch.bfloat16)).dtype == torch.float32
