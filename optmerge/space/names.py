"""Names of variables: "group/direction" for each, made when they are asked for.

A million columns have names that nobody reads one by one. What stands for them is one text per stretch of slices, which
is also how a run's manifest keeps them:

>>> names = VariableNames(["head/a", "up.weight[0:3]/a"])
>>> len(names), names[2], list(names.spans())
(4, 'up.weight[1]/a', [('head/a', slice(0, 1, None)), ('up.weight/a', slice(1, 4, None))])
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import overload

from optmerge.config.alternatives import CHOOSABLE

METHOD = "method"  # the choice of a method; choices of its settings are called by method and setting

_SLICES = re.compile(r"([^/]*)\[0:(\d+)\]((?:/.*)?)", re.DOTALL)  # before "/" stands a tensor, behind it any name


class VariableNames(Sequence[str]):
    """The names of a vector's coordinates.

    Args:
        compact: One text per variable, or per stretch of variables that belong to a tensor's slices in order.
    """

    def __init__(self, compact: Sequence[str]) -> None:
        self.compact = tuple(compact)
        self._parts: list[tuple[str, int | None, str]] = []  # group, number of slices, "/direction"
        for text in self.compact:
            found = _SLICES.fullmatch(text)
            self._parts.append((found[1], int(found[2]), found[3]) if found else (text, None, ""))
        self._ends = list(accumulate(1 if count is None else count for _, count, _ in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[str]:
        for group, count, rest in self._parts:
            if count is None:
                yield group
            else:
                yield from (f"{group}[{number}]{rest}" for number in range(count))

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"there is no variable {index} among {len(self)}")
        part = bisect_right(self._ends, position)
        group, count, rest = self._parts[part]
        return group if count is None else f"{group}[{position - self._ends[part] + count}]{rest}"

    @property
    def distinct(self) -> bool:
        """Whether no two variables have the same name."""
        return len(set(self.compact)) == len(self.compact)

    def spans(self) -> Iterator[tuple[str, slice]]:
        """Every stretch, called as its tensor and direction, with the variables that it has in the vector."""
        start = 0
        for (group, _, rest), end in zip(self._parts, self._ends, strict=True):
            yield f"{group}{rest}", slice(start, end)
            start = end


def slices_name(group: str, count: int) -> str:
    """How ``count`` slices of a tensor are called together, as `VariableNames` reads it."""
    return f"{group}[0:{count}]"


def is_choice(name: str) -> bool:
    """Whether a variable is a choice, and no coefficient.

    >>> [is_choice(name) for name in ("method", "ties.density", "custom.Shrunk.share", "model/a", "ties.mlp/a")]
    [True, True, True, False, False]
    """
    method, dot, _ = name.partition(".")
    return "/" not in name and (name == METHOD or (bool(dot) and method in CHOOSABLE))
