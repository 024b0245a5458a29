"""The search space: the only translator between a driver's flat vector and a table of coefficients [G, D].

space = build_space(config, roles, direction_names, shapes=family.parameters)
table = space.decode(vector)          # float64[d] -> float64[G, D]
vector = space.encode(table)          # the nearest vector, cut to the bounds
slope = space.pull_back(gradient, vector)     # dL/dtable -> dL/dvector

A vector makes values, and each searched coefficient has one of them. Values are the variables themselves, but where
the space has `Blocks`, as for polynomials of depth; coefficients that are shared or tied have the same value. A tensor
whose slices have coefficients of their own is one `TensorGroup` and many rows of the table. Everything per row and per
variable is an array, so that a million of them cost no more than their bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from optmerge.config.spaces import ChunksConfig, SpaceConfig
from optmerge.errors import ConfigError
from optmerge.merging.slices import Cut, even_chunks
from optmerge.space.blocks import Block, Blocks
from optmerge.space.chunks import chunk_counts, weighted_chunks
from optmerge.space.depth import bernstein, curve_name
from optmerge.space.groups import RoleLike, ShapeLike, TensorGroup, column_cuts, make_groups
from optmerge.space.names import VariableNames, slices_name
from optmerge.space.normalise import Kind, Mask, Table, normalised, variable_slope, variables_for
from optmerge.space.rules import Settled, require_ties_apart, require_used, settle, split_by_rules

Vector = npt.NDArray[np.float64]

DEFAULT_START = 0.3  # where task arithmetic is usually set, for a start that no baseline gives


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Groups, directions and variables.

    Attributes:
        groups: What the G rows of a table belong to, in order; one that is cut has as many rows as slices.
        directions: D direction names.
        names: d names, of the vector's variables.
        lower: float64[d].
        upper: float64[d].
        start: float64[d]; the configured start, before any baseline is known.
        index: int64[G, D]: which value a coefficient has, or -1 where it is frozen.
        frozen: float64[G, D]: the coefficients where ``index`` is -1.
        held: bool[G, D]: which of these stay at the start, wherever it is (`started_at`).
        normalise: How a group's searched coefficients are made to sum to 1; None leaves them as the variables are.
        blocks: How values follow from variables; None where they are the variables.
    """

    groups: tuple[TensorGroup, ...]
    directions: tuple[str, ...]
    names: VariableNames
    lower: Vector
    upper: Vector
    start: Vector
    index: npt.NDArray[np.int64]
    frozen: Table
    held: Mask
    normalise: Kind | None = None
    blocks: Blocks | None = None

    @property
    def dimension(self) -> int:
        """How many variables are searched."""
        return len(self.names)

    @property
    def num_rows(self) -> int:
        """G, the rows of a table of coefficients."""
        return int(self.index.shape[0])

    @cached_property
    def rows(self) -> tuple[slice, ...]:
        """The rows of each of ``groups``."""
        ends = np.cumsum([group.count for group in self.groups]).tolist()
        return tuple(slice(end - group.count, end) for group, end in zip(self.groups, ends, strict=True))

    @property
    def layers(self) -> tuple[int | None, ...]:
        """Each row's transformer layer."""
        return tuple(group.layer for group in self.groups for _ in range(group.count))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Each row's role."""
        return tuple(group.kind for group in self.groups for _ in range(group.count))

    @property
    def row_of(self) -> dict[str, int]:
        """Parameter -> its row, or the first of them."""
        return {name: at.start for group, at in zip(self.groups, self.rows, strict=True) for name in group.parameters}

    @property
    def cuts(self) -> dict[str, Cut]:
        """Parameter -> how it is cut, for those that are."""
        return {group.parameters[0]: group.cut for group in self.groups if group.cut is not None}

    @property
    def searched_groups(self) -> npt.NDArray[np.int64]:
        """Rows with at least one searched coefficient."""
        return np.flatnonzero(self._searched.any(axis=1))

    @property
    def searched_parameters(self) -> list[str]:
        """The only parameters that need gradients: those with a searched coefficient."""
        some = np.atleast_1d(self._searched.any(axis=1))
        return [
            name
            for group, at in zip(self.groups, self.rows, strict=True)
            if some[at].any()
            for name in group.parameters
        ]

    @property
    def nbytes(self) -> int:
        """What a search holds for its coefficients beside the driver: the space's arrays, and six tables [G, D]."""
        own = (self.lower, self.upper, self.start, self.index, self.frozen, self.held)
        return sum(array.nbytes for array in own) + 6 * self.frozen.nbytes

    @property
    def integer(self) -> Mask | None:
        """bool[d]: variables that take whole numbers only; None where there are none (`optmerge.space.choices`)."""
        return None

    @property
    def choices(self) -> Mapping[str, Sequence[str]]:
        """Variable -> what its whole numbers from 0 on stand for, where these are names."""
        return {}

    @property
    def usual(self) -> Collection[str]:
        """The directions that baselines are made of."""
        return self.directions

    def columns_at(self, vector: Vector) -> list[int]:
        """The directions, by column, that can have a coefficient at a vector."""
        return list(range(len(self.directions)))

    def method_at(self, vector: Vector) -> str | None:
        """The method that a vector chooses; None where nothing is chosen."""
        return None

    def decode(self, vector: Vector) -> Table:
        """float64[d] -> coefficients float64[G, D].

        Raises:
            ZeroDivisionError: ``normalise`` is ``sum``, and a group's variables sum to zero.
        """
        table = self.spread(vector)
        return table if self.normalise is None else normalised(self.normalise, table, self._searched, self._row_names)

    def encode(self, table: Table) -> Vector:
        """The vector whose coefficients are nearest to ``table``, by least squares, then cut to the bounds.

        A variable that alone sets some coefficients has their mean. `misfit` says what is lost.

        With ``normalise``, where the coefficients of ``table`` do not sum to 1 within a group, those of the vector are
        proportional to them (``sum``, and ``softmax`` where they are above 0), up to the bounds.
        """
        if self.normalise is not None:
            lower, upper = self.spread(self.lower), self.spread(self.upper)
            table = variables_for(self.normalise, table, self._searched, lower, upper)
        sizes = self._gather(self._searched.astype(np.float64))
        vector = self._gather(table) / sizes
        if self.blocks is not None:
            vector = self.blocks.nearest(vector, sizes)
        return np.clip(vector, self.lower, self.upper)

    def misfit(self, table: Table) -> float:
        """How far the searched coefficients of ``table`` are from those of `encode`'s vector, at most."""
        try:
            nearest = self.decode(self.encode(table))
        except ZeroDivisionError:
            return np.inf
        return float(np.abs(nearest - table)[self._searched].max())

    def reaches(self, table: Table) -> bool:
        """Whether the searched coefficients of ``table`` are those of some vector within bounds, to 1e-9."""
        return self.misfit(table) <= 1e-9

    def started_at(self, table: Table) -> SearchSpace:
        """The space of a search that starts from these coefficients: what is held stays at them."""
        return replace(self, frozen=np.where(self.held, table, self.frozen)) if self.held.any() else self

    def pull_back(self, gradient: Table, vector: Vector) -> Vector:
        """DL/dvector from dL/dcoefficients [G, D]: the transposed Jacobian of `decode` at ``vector``."""
        if self.normalise is not None:
            variables = self.spread(vector)
            gradient = variable_slope(self.normalise, gradient, variables, self._searched, self._row_names)
        slope = self._gather(gradient)
        return slope if self.blocks is None else self.blocks.transposed(slope)

    def spread(self, vector: Vector) -> Table:
        """A number per variable -> per coefficient, before any `normalise`; those that are frozen stand as they are.

        Bounds of the variables give bounds of the coefficients so, for the weights of `blocks` are averages.
        """
        values = vector if self.blocks is None else self.blocks(vector)
        return np.where(self._searched, np.append(values, 0.0)[self.index], self.frozen)

    def gather_squares(self, squares: Table) -> Vector:
        """float64[d]: of each variable the sum over coefficients of (d coefficient / d variable)^2 times ``squares``.

        As if there were no `normalise`.
        """
        gathered = self._gather(squares)
        return gathered if self.blocks is None else self.blocks.squared(gathered)

    @cached_property
    def _searched(self) -> Mask:
        return self.index >= 0

    @property
    def _row_names(self) -> Sequence[str]:
        return VariableNames([slices_name(g.name, g.count) if g.cut is not None else g.name for g in self.groups])

    def _gather(self, table: Table) -> Vector:
        """The sum over the coefficients that have a value, of every value."""
        searched = self._searched
        size = self.dimension if self.blocks is None else self.blocks.size
        summed: Vector = np.bincount(self.index[searched], weights=table[searched], minlength=size).astype(np.float64)
        return summed


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
    space = building.done(normalise, config.polynomial)
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

    def done(self, normalise: Kind | None, degree: int | None) -> SearchSpace:
        values = list(self._values.values())
        variables, blocks = (values, None) if degree is None else _along_depth(values, degree)
        counts = [variable.slices for variable in variables]
        limits = np.array([variable.limits for variable in variables], dtype=np.float64).reshape(-1, 3)
        lower, upper, start = np.repeat(limits, counts, axis=0).T.copy()
        names = VariableNames([variable.name for variable in variables])
        arrays = self._index, self._frozen, self._held
        return SearchSpace(self.groups, self.directions, names, lower, upper, start, *arrays, normalise, blocks)


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
    """The configured start; where a baseline gives it, a usual coefficient within the bounds until then."""
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
