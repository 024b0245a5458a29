"""How many chunks each tensor gets: more where task vectors are large (Expert Merging++, ICLR 2026).

counts = chunk_counts(importance, total=96, power=0.5)      # tensor -> chunks; 0: its coefficients are not searched
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def chunk_counts(importance: Mapping[str, float], *, total: float, power: float) -> dict[str, int]:
    """m_l = floor(total * I_l^power / sum_j I_j^power), with I the importance divided by its sum.

    Args:
        importance: Tensor -> sum over directions of |coefficient| * mean |task vector| * elements.
        total: About how many chunks there are in all; rounding down loses some.
        power: 0 treats all tensors alike, 1 gives chunks in proportion to importance.
    """
    whole = sum(importance.values())
    shares = {name: (value / whole if whole else 0.0) ** power for name, value in importance.items()}
    summed = sum(shares.values())
    return {name: math.floor(total * share / summed) if summed else 0 for name, share in shares.items()}
