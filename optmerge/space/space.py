"""The search space: the only translator between a driver's flat vector and a table of coefficients [G, D].

space = build_space(config, roles, direction_names)
table = space.decode(vector)          # float64[d] -> float64[G, D]
vector = space.encode(table)          # the nearest vector within bounds
slope = space.pull_back(gradient, vector)     # dL/dtable -> dL/dvector
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optmerge.config.spaces import RuleConfig, SpaceConfig
from optmerge.errors import ConfigError, did_you_mean
from optmerge.space.groups import RoleLike, TensorGroup, make_groups
from optmerge.space.normalise import Kind, Table, normalised, variable_slope, variables_for

Vector = npt.NDArray[np.float64]

ROLE_KINDS = ("embedding", "attention", "mlp", "norm", "final-norm", "head", "other", "vision", "connector")
DEFAULT_START = 0.3  # where task arithmetic is usually set, for a start that no baseline gives


@dataclass(frozen=True, slots=True)
class Variable:
    """One coordinate of the vector."""

    name: str
    lower: float
    upper: float
    start: float


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Groups, directions and variables.

    Attributes:
        groups: G tensor groups.
        directions: D direction names.
        variables: d named bounded variables.
        index: int64[G, D]: which variable sets a coefficient, or -1 where it is frozen.
        frozen: float64[G, D]: the coefficients where ``index`` is -1.
        normalise: How a group's searched coefficients are made to sum to 1; None leaves them as the variables are.
    """

    groups: tuple[TensorGroup, ...]
    directions: tuple[str, ...]
    variables: tuple[Variable, ...]
    index: npt.NDArray[np.int64]
    frozen: Table
    normalise: Kind | None = None

    @property
    def dimension(self) -> int:
        """How many variables are searched."""
        return len(self.variables)

    @property
    def lower(self) -> Vector:
        """float64[d]."""
        return np.array([variable.lower for variable in self.variables])

    @property
    def upper(self) -> Vector:
        """float64[d]."""
        return np.array([variable.upper for variable in self.variables])

    @property
    def start(self) -> Vector:
        """float64[d]; the configured start, before any baseline is known."""
        return np.array([variable.start for variable in self.variables])

    @property
    def searched_groups(self) -> list[int]:
        """Rows with at least one searched coefficient: the only parameters that need gradients."""
        rows: list[int] = np.flatnonzero(self._searched.any(axis=1)).tolist()
        return rows

    def decode(self, vector: Vector) -> Table:
        """float64[d] -> coefficients float64[G, D].

        Raises:
            ZeroDivisionError: ``normalise`` is ``sum``, and a group's variables sum to zero.
        """
        table = self._spread(vector)
        return table if self.normalise is None else normalised(self.normalise, table, self._searched, self._names)

    def encode(self, table: Table) -> Vector:
        """The vector whose coefficients are nearest to ``table`` (mean over what a variable sets), within bounds.

        With ``normalise``, where the coefficients of ``table`` do not sum to 1 within a group, those of the vector are
        proportional to them (``sum``, and ``softmax`` where they are above 0), up to the bounds.
        """
        if self.normalise is not None:
            lower, upper = self._spread(self.lower), self._spread(self.upper)
            table = variables_for(self.normalise, table, self._searched, lower, upper)
        return np.clip(self._gather(table) / self._sizes(), self.lower, self.upper)

    def reaches(self, table: Table) -> bool:
        """Whether the searched coefficients of ``table`` are those of some vector within bounds, to 1e-9."""
        try:
            nearest = self.decode(self.encode(table))
        except ZeroDivisionError:
            return False
        return np.allclose(nearest[self._searched], table[self._searched], rtol=0.0, atol=1e-9)

    def pull_back(self, gradient: Table, vector: Vector) -> Vector:
        """DL/dvector from dL/dcoefficients [G, D]: the transposed Jacobian of `decode` at ``vector``."""
        if self.normalise is not None:
            variables = self._spread(vector)
            gradient = variable_slope(self.normalise, gradient, variables, self._searched, self._names)
        return self._gather(gradient)

    @property
    def _searched(self) -> npt.NDArray[np.bool_]:
        return self.index >= 0

    @property
    def _names(self) -> list[str]:
        return [group.name for group in self.groups]

    def _spread(self, vector: Vector) -> Table:
        return np.where(self._searched, np.append(vector, 0.0)[self.index], self.frozen)

    def _gather(self, table: Table) -> Vector:
        searched = self._searched
        summed: Vector = np.bincount(self.index[searched], weights=table[searched], minlength=self.dimension).astype(
            np.float64
        )
        return summed

    def _sizes(self) -> Vector:
        return np.bincount(self.index[self._searched], minlength=self.dimension).astype(np.float64)


def build_space(
    config: SpaceConfig,
    roles: Mapping[str, RoleLike],
    directions: Sequence[str],
    *,
    untouched: Mapping[str, Collection[str]] | None = None,
) -> SearchSpace:
    """Build the space of a model.

    Args:
        config: Granularity, bounds, start, rules.
        roles: Merged parameter -> role, in module order.
        directions: Names of the directions that get coefficients.
        untouched: Direction -> parameters where its delta is zero. A coefficient that multiplies nothing but zeros is
            no variable (frozen embeddings, the layers that an adapter leaves alone); it is 0.

    Raises:
        ConfigError: A rule matches nothing, its start lies outside its bounds, or nothing is left to search.
    """
    groups = make_groups(roles, config.granularity)
    groups = _split_by_rules(groups, roles, config.rules)
    used = [False] * len(config.rules)
    variables: list[Variable] = []
    index = np.full((len(groups), len(directions)), -1, dtype=np.int64)
    frozen = np.zeros((len(groups), len(directions)))
    shared: dict[str, int] = {}
    normalise = None if config.normalise == "none" else config.normalise
    for row, group in enumerate(groups):
        searched: list[tuple[int, tuple[float, float], float | str]] = []
        for column, direction in enumerate(directions):
            freeze, bounds, start = _settle(config, group, direction, roles, used)
            if untouched is not None and all(name in untouched.get(direction, ()) for name in group.parameters):
                continue
            if freeze is not None:
                frozen[row, column] = freeze
            else:
                searched.append((column, bounds, start))
        if normalise is not None and len(searched) == 1:
            frozen[row, searched[0][0]] = 1.0  # what it would be normalised to, wherever the variable stood
            continue
        for column, bounds, start in searched:
            name = _variable_name(config.granularity, group, directions[column])
            if name not in shared:
                shared[name] = len(variables)
                variables.append(_variable(name, bounds, start))
            index[row, column] = shared[name]
    for number, rule in enumerate(config.rules):
        if not used[number]:
            raise ConfigError(
                f"space.rules.{number} matches nothing: match {rule.match!r}, direction {rule.direction!r}. "
                f"Use a role ({', '.join(ROLE_KINDS)}) or a glob over parameter names such as {next(iter(roles))!r}; "
                f"directions are {', '.join(directions)}."
                + (did_you_mean(rule.match, [*ROLE_KINDS, *roles]) if "*" not in rule.match else "")
            )
    if not variables:
        single = " (with normalise, a group's only coefficient is 1)" if normalise is not None else ""
        raise ConfigError(
            f"space: every coefficient is frozen{single}, so there is nothing to search. Remove a rule that freezes, "
            "or look whether the experts are equal to the base."
        )
    space = SearchSpace(groups, tuple(directions), tuple(variables), index, frozen, normalise)
    try:
        space.decode(space.start)
    except ZeroDivisionError as problem:
        raise ConfigError(f"space: nothing can start there: {problem}.") from None
    return space


def _variable(name: str, bounds: tuple[float, float], start: float | str) -> Variable:
    low, high = float(bounds[0]), float(bounds[1])
    if isinstance(start, str):
        return Variable(name, low, high, min(max(DEFAULT_START, low), high))
    if not low <= start <= high:
        raise ConfigError(f"space: {name} would start at {start}, outside its bounds {list(bounds)}.")
    return Variable(name, low, high, float(start))


def _settle(
    config: SpaceConfig, group: TensorGroup, direction: str, roles: Mapping[str, RoleLike], used: list[bool]
) -> tuple[float | None, tuple[float, float], float | str]:
    """What the rules make of one coefficient: frozen value or None, bounds, start. Marks the rules that match."""
    freeze: float | None = None
    bounds: tuple[float, float] = config.bounds
    start: float | str = config.start
    for number, rule in enumerate(config.rules):
        if not (_matches(rule, group, roles) and fnmatch.fnmatchcase(direction, rule.direction)):
            continue
        used[number] = True
        if rule.freeze is not None or rule.bounds is not None or rule.start is not None:
            freeze = rule.freeze  # a later rule with bounds or a start makes a frozen coefficient a variable again
        bounds = rule.bounds or bounds
        start = rule.start if rule.start is not None else start
    return freeze, bounds, start


def _variable_name(granularity: str, group: TensorGroup, direction: str) -> str:
    if granularity == "model-wise":
        return "model" if group.name == "model" else group.name
    return f"{group.name}/{direction}"


def _matches(rule: RuleConfig, group: TensorGroup, roles: Mapping[str, RoleLike]) -> bool:
    return _matches_parameter(rule, group.parameters[0], roles)  # a group never straddles a rule


def _matches_parameter(rule: RuleConfig, parameter: str, roles: Mapping[str, RoleLike]) -> bool:
    return rule.match in (roles[parameter].kind, roles[parameter].part) or fnmatch.fnmatchcase(parameter, rule.match)


def _split_by_rules(
    groups: tuple[TensorGroup, ...], roles: Mapping[str, RoleLike], rules: Sequence[RuleConfig]
) -> tuple[TensorGroup, ...]:
    """Split groups that a rule matches only in part, so that every group obeys exactly one set of rules."""
    result: list[TensorGroup] = []
    for group in groups:
        parts: dict[tuple[bool, ...], list[str]] = {}
        for parameter in group.parameters:
            parts.setdefault(tuple(_matches_parameter(rule, parameter, roles) for rule in rules), []).append(parameter)
        if len(parts) == 1:
            result.append(group)
            continue
        for signature, parameters in parts.items():
            hits = [rules[number].match for number, hit in enumerate(signature) if hit]
            kinds = {roles[parameter].kind for parameter in parameters}
            name = "+".join([group.name, *hits]) if hits else group.name
            result.append(
                TensorGroup(name, tuple(parameters), group.layer, kinds.pop() if len(kinds) == 1 else group.kind)
            )
    return tuple(result)
