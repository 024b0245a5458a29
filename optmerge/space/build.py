"""From a space's settings and a model's parameters to a `SearchSpace`: groups, then a value for every coefficient.

space = build_space(SpaceConfig(granularity="layer-wise"), roles, ["sentiment", "topic"])
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from optmerge.config.spaces import ChunksConfig, SpaceConfig
from optmerge.errors import ConfigError
from optmerge.merging.slices import Cut, even_chunks
from optmerge.space.blocks import Block, Blocks
from optmerge.space.chunks import chunk_counts, weighted_chunks
from optmerge.space.depth import bernstein, curve_name
from optmerge.space.groups import RoleLike, ShapeLike, TensorGroup, column_cuts, make_groups
from optmerge.space.names import VariableNames, slices_name
from optmerge.space.normalise import Kind
from optmerge.space.rules import Settled, require_ties_apart, require_used, settle, split_by_rules
from optmerge.space.space import SearchSpace

DEFAULT_START = 0.3  # where task arithmetic is usually set, for a start that no baseline gives


def build_space(
    config: SpaceConfig,
    roles: Mapping[str, RoleLike],
    directions: Sequence[str],
    *,
    untouched: Mapping[str, Collection[str]] | None = None,
    shapes: Mapping[str, ShapeLike] | None = None,
    magnitudes: Mapping[str, Mapping[str, float]] | None = None,
    profile: Mapping[str, Sequence[float]] | None = None,
    lanes: Mapping[str, str] | None = None,
) -> SearchSpace:
    """Build the space of a model.

    Args:
        config: Granularity, bounds, start, rules.
        roles: Merged parameter -> role, in module order.
        directions: Names of the directions that get coefficients.
        untouched: Direction -> parameters where its delta is zero. A coefficient that multiplies nothing but zeros is
            no variable (frozen embeddings, the layers that an adapter leaves alone); it is 0.
        shapes: Parameter -> shape; for the granularities that cut parameters.
        magnitudes: Direction -> parameter -> mean |task vector|, for chunk-wise; None takes all to be the same.
        profile: Parameter -> importance of its slices (`optmerge.runner.fisher`), for chunk-wise in the place of
            magnitudes.
        lanes: Direction -> what it has in common with those that ``shared`` gives the same coefficients
            (`optmerge.merging.recipe.Direction.lane`); None is one lane for all.

    Raises:
        ConfigError: A rule matches nothing, its start lies outside its bounds, what shares a variable has different
            bounds, or nothing is left to search.
    """
    used = [False] * len(config.rules)
    held: Collection[str] = ()
    cuts: dict[str, Cut] = {}
    if config.granularity in ("column-wise", "chunk-wise"):
        assert shapes is not None, f"{config.granularity} coefficients need the parameters' shapes"
        if config.granularity == "column-wise":
            cuts = column_cuts(roles, shapes)
        else:
            cuts, held = _chunk_cuts(config, roles, directions, untouched or {}, shapes, magnitudes, profile)
    groups = split_by_rules(make_groups(roles, config.granularity, cuts), roles, config.rules)
    require_ties_apart(config.rules, groups)
    building = _Building(groups, directions)
    normalise = None if config.normalise == "none" else config.normalise
    for number, group in enumerate(groups):
        searched: list[tuple[int, Settled]] = []
        for column, direction in enumerate(directions):
            settled = settle(config, group, direction, roles, used)
            if untouched is not None and all(name in untouched.get(direction, ()) for name in group.parameters):
                continue
            if settled.freeze is not None:
                building.freeze(number, column, settled.freeze)
            elif group.name in held:
                building.hold(number, column, _start_value(settled))
            else:
                searched.append((column, settled))
        if normalise is not None and len(searched) == 1:
            building.freeze(number, searched[0][0], 1.0)  # what it would be normalised to, wherever the variable stood
            continue
        for column, settled in searched:
            building.search(number, column, settled, _across(config, directions[column], lanes))
    require_used(config.rules, used, roles, directions)
    space = building.done(normalise, config.polynomial, whole=config.whole)
    if not space.dimension and space.held.any():
        raise ConfigError(
            "space: no tensor gets a chunk, so there is nothing to search. A tensor's chunks follow from |coefficient| "
            "x mean |task vector| x elements: give space.start a value other than 0, or raise space.chunks.budget."
        )
    if not space.dimension:
        single = " (with normalise, a group's only coefficient is 1)" if normalise is not None else ""
        raise ConfigError(
            f"space: every coefficient is frozen{single}, so there is nothing to search. Remove a rule that freezes, "
            "or look whether the experts are equal to the base."
        )
    try:
        space.decode(space.start)
    except ZeroDivisionError as problem:
        raise ConfigError(f"space: nothing can start there: {problem}.") from None
    return space


def _across(config: SpaceConfig, direction: str, lanes: Mapping[str, str] | None) -> str:
    """How a variable's name ends: "/" and the direction or the lane that it is for; "" where it is for all."""
    if config.granularity == "model-wise":
        return ""
    if not config.shared:
        return f"/{direction}"
    return f"/{lanes[direction] if lanes is not None else 'all'}"


class _Value(NamedTuple):
    """A value that coefficients have, or as many as a tensor has slices.

    Attributes:
        first: The number of the first.
        limits: Lower and upper bound, and start.
        curve: The polynomial that it is on, and how the names of that one's variables end.
        layer: Where on it.
    """

    name: str
    first: int
    slices: int
    limits: tuple[float, float, float]
    curve: tuple[str, str] | None
    layer: int


class _Building:
    """A space while its coefficients are settled one group and direction at a time."""

    def __init__(self, groups: tuple[TensorGroup, ...], directions: Sequence[str]) -> None:
        self.groups, self.directions = groups, tuple(directions)
        ends = np.cumsum([group.count for group in groups])
        self._rows = [slice(int(end) - group.count, int(end)) for group, end in zip(groups, ends, strict=True)]
        shape = (int(ends[-1]), len(directions))
        self._index = np.full(shape, -1, dtype=np.int64)
        self._frozen = np.zeros(shape)
        self._held = np.zeros(shape, dtype=np.bool_)
        self._values: dict[str, _Value] = {}
        self._size = 0

    def freeze(self, group: int, column: int, value: float) -> None:
        self._frozen[self._rows[group], column] = value

    def hold(self, group: int, column: int, value: float) -> None:
        self.freeze(group, column, value)
        self._held[self._rows[group], column] = True

    def search(self, group: int, column: int, settled: Settled, across: str) -> None:
        """Values for a group's coefficients of one direction: those of its name, where there are some already."""
        own = self.groups[group]
        own_name = own.name if own.cut is None else slices_name(own.name, own.count)
        name = f"{settled.tie or own_name}{across}"
        low, high = float(settled.bounds[0]), float(settled.bounds[1])
        start = _start_value(settled)
        if not low <= start <= high:
            raise ConfigError(f"space: {name} would start at {start}, outside its bounds {list(settled.bounds)}.")
        value = self._values.get(name)
        if value is None:
            stack = None if settled.tie else curve_name(own)
            curve = None if stack is None else (stack, across)
            value = _Value(name, self._size, own.count, (low, high, start), curve, own.layer or 0)
            self._values[name] = value
            self._size += own.count
        elif value.limits != (low, high, start):
            raise ConfigError(
                f"space: {name} is one variable for several coefficients, and rules give it bounds [{low}, {high}] and "
                f"start {start} in one place, [{value.limits[0]}, {value.limits[1]}] and {value.limits[2]} in another. "
                "Let the same rules match all of them."
            )
        self._index[self._rows[group], column] = value.first + np.arange(own.count)

    def done(self, normalise: Kind | None, degree: int | None, *, whole: bool | str) -> SearchSpace:
        values = list(self._values.values())
        variables, blocks = (values, None) if degree is None else _along_depth(values, degree)
        counts = [variable.slices for variable in variables]
        limits = np.array([variable.limits for variable in variables], dtype=np.float64).reshape(-1, 3)
        lower, upper, start = np.repeat(limits, counts, axis=0).T.copy()
        names = VariableNames([variable.name for variable in variables])
        arrays = self._index, self._frozen, self._held
        if whole:
            start = np.rint(start)  # one that a baseline will give is no whole number until then
        return SearchSpace(
            self.groups,
            self.directions,
            names,
            lower,
            upper,
            start,
            *arrays,
            normalise,
            blocks,
            whole=bool(whole),
            rounded=whole == "straight-through",
        )


def _along_depth(values: Sequence[_Value], degree: int) -> tuple[list[_Value], Blocks]:
    """Variables in the place of values that are on a polynomial: its control points. Other values stay variables."""
    members: dict[object, list[int]] = {}
    for number, value in enumerate(values):
        members.setdefault((value.curve, value.limits) if value.curve else value.name, []).append(number)
    variables: list[_Value] = []
    blocks: list[Block] = []
    taken: set[tuple[str, str]] = set()
    for numbers in members.values():
        first = values[numbers[0]]
        if first.curve is None:
            variables.append(first)
            continue
        matrix = bernstein([values[number].layer for number in numbers], degree)
        points = matrix.shape[1]
        blocks.append(Block(np.array(numbers), len(variables) + np.arange(points), matrix))
        stack, across = first.curve
        if first.curve in taken:  # rules give other bounds to some of the layers
            stack = f"{stack}+layer.{first.layer}"
        taken.add(first.curve)
        variables += [first._replace(name=f"{stack}@{point}{across}") for point in range(points)]
    return variables, Blocks.of(blocks, size=len(values), dimension=len(variables))


def _start_value(settled: Settled) -> float:
    """The configured start; where a baseline or a recipe gives it, a usual coefficient within the bounds until then."""
    if isinstance(settled.start, str):
        return min(max(DEFAULT_START, settled.bounds[0]), settled.bounds[1])
    return float(settled.start)


def _chunk_cuts(
    config: SpaceConfig,
    roles: Mapping[str, RoleLike],
    directions: Sequence[str],
    untouched: Mapping[str, Collection[str]],
    shapes: Mapping[str, ShapeLike],
    magnitudes: Mapping[str, Mapping[str, float]] | None,
    profile: Mapping[str, Sequence[float]] | None,
) -> tuple[dict[str, Cut], set[str]]:
    """How tensors are cut into chunks, and the tensors that get none and stay at the start."""
    importance: dict[str, float] = {}
    for group in make_groups(roles, "tensor-wise"):
        total, searched = 0.0, False
        for direction in directions:
            settled = settle(config, group, direction, roles, [False] * len(config.rules))
            coefficient = settled.freeze if settled.freeze is not None else _start_value(settled)
            touched = group.name not in untouched.get(direction, ())
            mean = 1.0 if magnitudes is None else magnitudes[direction][group.name]
            total += abs(coefficient) * mean * shapes[group.name].numel * touched
            searched |= touched and settled.freeze is None
        if searched:
            importance[group.name] = total if profile is None else sum(profile[group.name])
    chunks = config.chunks or ChunksConfig()
    counts = chunk_counts(importance, total=chunks.budget * len(importance), power=chunks.power)
    cuts = {
        name: even_chunks(shapes[name].shape, count)
        if profile is None
        else weighted_chunks(shapes[name].shape, profile[name], count)
        for name, count in counts.items()
        if count > 1
    }
    return (
        {name: cut for name, cut in cuts.items() if cut is not None},
        {name for name, count in counts.items() if count == 0},
    )
