"""Sign election (stage E; Yadav et al. 2023, algorithm 1, step 2): per parameter entry, the sign with more mass."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def elect(values: Sequence[torch.Tensor], out: torch.Tensor, *, zero_is_positive: bool = False) -> torch.Tensor:
    """sgn(sum_i values_i), elementwise.

    Args:
        values: One tensor per expert, of one shape, trimmed (and weighted, where the weights shall have a vote).
        out: [*shape]; overwritten with -1, 0 or 1.
        zero_is_positive: An exact tie elects +1, as in mergekit. Otherwise it elects 0 and nothing agrees with it, so
            that negating all task vectors negates the merge.

    Returns:
        ``out``.
    """
    out.copy_(values[0])
    for value in values[1:]:
        out += value
    out.sign_()
    return out.add_(0.5).sign_() if zero_is_positive else out


def keep_agreeing(values: Sequence[torch.Tensor], sign: torch.Tensor) -> None:
    """Set to zero, in place, what does not have the elected sign.

    Args:
        values: One tensor per expert, of one shape.
        sign: [*shape], -1, 0 or 1: an entry that elected nobody keeps nothing.
    """
    for value in values:
        value.mul_(sign).relu_().mul_(sign)
