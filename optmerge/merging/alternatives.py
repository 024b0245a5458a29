"""The directions of a search that chooses among methods, with each of their values: as wholes, or each expert's parts.

chosen = expand_alternatives(read_alternatives(config.methods), plain, ["sentiment", "topics"])
chosen.columns[3]          # where the directions of the fourth setting stand among chosen.directions

A candidate has coefficients along the directions of one setting, so the others cost it nothing: the engine reads only
deltas whose coefficients are not zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from optmerge.config.alternatives import CHOICE, Alternative, OneOfConfig
from optmerge.config.methods import MethodConfig
from optmerge.config.spectral import DirectionConfig
from optmerge.errors import ConfigError
from optmerge.merging.directions import expand_directions
from optmerge.merging.recipe import Direction

Known = TypeVar("Known")


@dataclass(frozen=True, eq=False)
class Alternatives:
    """S settings: methods, each with one value of everything that is searched of it.

    Attributes:
        methods: In the order of the search file.
        settings: For each setting the method's number, and the positions of its values.
        directions: All directions of all settings, each once.
        columns: int64[S, D], where the D directions of a setting stand among them.
    """

    methods: tuple[Alternative, ...]
    settings: tuple[tuple[int, tuple[int, ...]], ...]
    directions: tuple[Direction, ...]
    columns: npt.NDArray[np.int64]

    @property
    def whole(self) -> bool:
        """Whether whole methods are chosen among, which have one coefficient for all experts."""
        return self.methods[0].whole


def with_choice(
    known: Mapping[str, Known], alternatives: Alternatives | None, combine: Callable[[list[Known]], Known]
) -> dict[str, Known]:
    """What is known of directions, by name, with the place of a choice among whole methods beside them.

    Args:
        known: Of every direction that may be chosen, and of others.
        alternatives: None where nothing is chosen.
        combine: What holds of the place, from what is known of each method that may stand there.
    """
    if alternatives is None or not alternatives.whole:
        return dict(known)
    labels = [method.label(at) for method in alternatives.methods for at in method.configs]
    return {**known, CHOICE: combine([known[label] for label in labels])}


def searched_directions(
    directions: Sequence[str | DirectionConfig | OneOfConfig],
    experts: Sequence[str],
    method: MethodConfig | None,
    methods: Sequence[Alternative],
) -> tuple[tuple[Direction, ...], Alternatives | None]:
    """The directions that variables are made for, and what is chosen among, if anything is.

    Args:
        directions: "experts", whole methods, bands, and a choice among whole methods.
        experts: Their names.
        method: What "experts" stands for where no parts are chosen among.
        methods: What is chosen among; empty for nothing.

    Raises:
        ConfigError: See `expand_directions` and `expand_alternatives`.
    """
    if not methods:
        return expand_directions(directions, experts, method), None
    plain = expand_directions(directions, experts, method if methods[0].whole else None)
    return plain, expand_alternatives(methods, plain, experts)


def expand_alternatives(
    methods: Sequence[Alternative], plain: Sequence[Direction], experts: Sequence[str]
) -> Alternatives:
    """The directions of a choice.

    Args:
        methods: What is chosen among.
        plain: The directions that are searched. Parts of methods take the places of task vectors among them, and whole
            methods the place of the one that is called `optmerge.config.alternatives.CHOICE`.
        experts: Their names.

    Raises:
        ConfigError: No task vectors are among ``plain``, or an expert is called like a method.
    """
    whole = any(method.whole for method in methods)
    if not whole and all(direction.kind != "expert" for direction in plain):
        raise ConfigError(
            "methods says what 'experts' among the directions may stand for, and directions has no 'experts'. Add it."
        )
    clash = next((method.name for method in methods if method.name in experts), None)
    if clash is not None:
        raise ConfigError(
            f"experts.{clash}: an expert is called like the method {clash}, which is among methods. Give the expert "
            "another name."
        )
    taken = next((method.name for method in methods if whole and method.name in {d.whole for d in plain}), None)
    if taken is not None:
        raise ConfigError(
            f"directions: {taken} stands among the directions, and in {CHOICE} too. Take it out of one of them."
        )
    settings = tuple((number, at) for number, method in enumerate(methods) for at in method.configs)
    found: list[Direction] = []
    columns = np.zeros((len(settings), len(plain)), dtype=np.int64)
    for row, (number, positions) in enumerate(settings):
        method = methods[number]
        for column, direction in enumerate(plain):
            own = _own(method, positions, direction)
            if own not in found:
                found.append(own)
            columns[row, column] = found.index(own)
    return Alternatives(tuple(methods), settings, tuple(found), columns)


def _own(method: Alternative, positions: tuple[int, ...], direction: Direction) -> Direction:
    """What a direction is with a method: the method, an expert's part of it, its task vector, or what it is anyhow."""
    label, config = method.label(positions), method.configs[positions]
    if method.whole:
        return Direction(label, "method", config) if direction == Direction(CHOICE, "method") else direction
    if direction.kind != "expert" or config.name == "task_arithmetic":
        return direction
    return Direction(f"{label}:{direction.name}", "part", config, direction.name)
