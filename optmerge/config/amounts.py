"""Amounts of memory as people write them.

>>> amount_bytes("12GB"), amount_bytes("1.5 GiB"), amount_bytes("900m")
(12000000000, 1610612736, 900000000)
"""

from __future__ import annotations

import re

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def amount_bytes(text: str) -> int:
    """How many bytes a text says.

    Raises:
        ValueError: It is no amount of memory.
    """
    found = re.fullmatch(r"(\d*\.?\d+)\s*((?:[KMG]I?)?)B?", text.strip().upper(), re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is no amount of memory; expected auto, or an amount such as 12GB, 900MB or 8GiB.")
    return int(float(found[1]) * _FACTORS[found[2]])
