"""Parameters as linear maps [out, in], whatever the layout they are stored in, and one matrix at a time.

merged = by_matrix(lambda experts: sum(experts), deltas, models.kind(name))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from optmerge.merging.methods.base import TensorKind
from optmerge.merging.methods.matrixwise import as_matrices


def linear_map(tensor: torch.Tensor, kind: TensorKind) -> torch.Tensor:
    """A view [out, in], or [stack, out, in] of a stack; a convolution is [out, in * ...]. Vectors have none."""
    matrix = as_matrices(tensor, kind)
    return matrix.mT if kind.input_first else matrix


def as_stored(matrix: torch.Tensor, kind: TensorKind) -> torch.Tensor:
    """The parameter that `linear_map` shows as ``matrix``; contiguous."""
    return (matrix.mT if kind.input_first else matrix).reshape(kind.shape).contiguous()


def by_matrix(
    merge: Callable[[list[torch.Tensor]], torch.Tensor], tensors: Sequence[torch.Tensor], kind: TensorKind
) -> torch.Tensor:
    """What ``merge`` makes of some tensors of one parameter: of their matrices of a stack one after the other.

    Args:
        merge: [out, in] tensors, which may be views -> an [out, in] tensor.
        tensors: Each of the parameter's shape.
        kind: Of the parameter; not a vector.

    Returns:
        A tensor of the parameter's shape.
    """
    maps = [linear_map(tensor, kind) for tensor in tensors]
    if maps[0].ndim == 2:
        return as_stored(merge(maps), kind)
    return as_stored(torch.stack([merge(list(matrices)) for matrices in zip(*maps, strict=True)]), kind)
