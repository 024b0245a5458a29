"""Which tensors are matrices, stacks of matrices, convolutions or vectors."""

from __future__ import annotations

import pytest

from optmerge.merging.methods import TensorKind
from optmerge.models.roles import RoleKind


@pytest.mark.parametrize(
    ("role", "shape", "structure"),
    [
        ("other", (), "vector"),
        ("norm", (8,), "vector"),
        ("other", (1, 8), "vector"),
        ("other", (8, 1), "vector"),
        ("embedding", (1, 1, 8), "vector"),
        ("mlp", (8, 4), "matrix"),
        ("embedding", (1, 5, 8), "matrix"),
        ("mlp", (3, 8, 4), "stack"),
        ("mlp", (1, 8, 4), "matrix"),
        ("mlp", (3, 8, 1), "vector"),
        ("attention", (8, 1, 4), "convolution"),
        ("embedding", (8, 3, 2, 2), "convolution"),
        ("mlp", (8, 1, 3, 3), "convolution"),
        ("other", (0, 4), "vector"),
    ],
)
def test_structure(role: RoleKind, shape: tuple[int, ...], structure: str) -> None:
    assert TensorKind(role, False, shape).structure == structure
