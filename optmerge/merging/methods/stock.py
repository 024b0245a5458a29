"""Shrinking the mean of the experts to the base, by the angle between their task vectors (Model Stock, stage F).

    stock(products, average="cosine")       # a rule of `combination`: factors of the task vectors

Of K experts whose task vectors have pairwise cosines c, t = K c / (1 + (K - 1) c) is where between base and mean the
point nearest to the centre of all fine-tuned models lies (Jang et al. 2024, equation 7). The paper has one angle; how
it comes from the pairs of three experts or more is a choice.
"""

from __future__ import annotations

from typing import Literal

import torch

_SMALL = 1e-6  # mergekit's smallest product of norms, and smallest denominator


def stock(
    products: torch.Tensor, *, average: Literal["cosine", "angle"] = "cosine", unclamped: bool = False
) -> torch.Tensor:
    """The factor t / K of every expert's task vector.

    A task vector of zeros is at a right angle to all others.

    Args:
        products: fp64[..., K, K], inner products of K >= 2 task vectors.
        average: What is averaged over the pairs.
        unclamped: mergekit's rules: a negative cosine extrapolates away from the mean, and the base is taken where
            there is no finite t. Else a negative cosine counts as 0, and t is between 0 and 1.

    Returns:
        fp64[..., K].
    """
    count = products.shape[-1]
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    lengths = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    least = _SMALL if unclamped else torch.finfo(products.dtype).tiny
    first, second = torch.triu_indices(count, count, offset=1)
    cosines = (products / lengths.clamp_min(least))[..., first, second].clamp(-1, 1)
    cosine = cosines.mean(dim=-1) if average == "cosine" else cosines.acos().mean(dim=-1).cos()
    if not unclamped:
        cosine = cosine.clamp_min(0)
    denominator = 1 + (count - 1) * cosine
    pole = denominator.abs() < _SMALL
    share = torch.where(pole, 0.0, cosine / denominator.masked_fill(pole, 1.0))
    return share.unsqueeze(-1).expand(*share.shape, count)
