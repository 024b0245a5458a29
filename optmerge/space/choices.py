"""A search space that also chooses: coefficients, a method, and the values of its settings, in one vector.

    space = choosing(build_space(...), expand_alternatives(...))
    space.names[-2:]                  # ("method", "ties-split.density")
    space.decode(vector)              # float64[G, D]; only the columns of one setting are not zero

The coefficients mean the same whichever method is chosen, so that what is learnt of them is kept when the choice
changes. A choice is a whole number: the position of a method or of a value in its list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from optmerge.merging.alternatives import Alternatives
from optmerge.space.names import METHOD, VariableNames
from optmerge.space.normalise import Table
from optmerge.space.space import SearchSpace, Vector


@dataclass(frozen=True, eq=False)
class ChoosingSpace(SearchSpace):
    """The variables of a space of coefficients, then those of a choice.

    Attributes:
        plain: The space of the coefficients, over the D' directions that every setting has.
        alternatives: What is chosen among; its directions are this space's.
    """

    plain: SearchSpace = field(kw_only=True)
    alternatives: Alternatives = field(kw_only=True)

    @property
    def integer(self) -> npt.NDArray[np.bool_]:
        """bool[d]: the choices, and all others where coefficients are whole numbers."""
        return (np.arange(self.dimension) >= self.plain.dimension) | (self.plain.whole and not self.plain.rounded)

    @property
    def choices(self) -> Mapping[str, tuple[str, ...]]:
        """Choice -> what its whole numbers stand for, where they have no order."""
        return {name: labels for name, labels, ordered, _ in _variables(self.alternatives) if not ordered}

    @property
    def usual(self) -> frozenset[str]:
        """The directions of every method with the usual values of its settings; what baselines are made of."""
        own = self.alternatives
        rows = [
            row
            for row, (number, at) in enumerate(own.settings)
            if at == tuple(varied.usual for varied in own.methods[number].varied)
        ]
        return frozenset(self.directions[column] for column in own.columns[rows].ravel())

    def setting(self, vector: Vector) -> int:
        """Which setting a vector chooses."""
        own = self.alternatives
        chosen = dict(zip(self.names[self.plain.dimension :], vector[self.plain.dimension :], strict=True))
        number = int(np.rint(chosen.get(METHOD, 0.0)))
        method = own.methods[number]
        at = tuple(int(np.rint(chosen[method.variable(varied)])) for varied in method.varied)
        return own.settings.index((number, at))

    def method_at(self, vector: Vector) -> str | None:
        """The method whose parts a vector chooses; the directions of its columns have the values. None for wholes."""
        number, _ = self.alternatives.settings[self.setting(vector)]
        return None if self.alternatives.whole else self.alternatives.methods[number].method

    def columns_at(self, vector: Vector) -> list[int]:
        """The directions of the setting that a vector chooses, by column."""
        found: list[int] = self.alternatives.columns[self.setting(vector)].tolist()
        return found

    def decode(self, vector: Vector) -> Table:
        """float64[d] -> coefficients float64[G, D], zero but for the setting's."""
        table = np.zeros((self.num_rows, len(self.directions)))
        table[:, self.columns_at(vector)] = self.plain.decode(vector[: self.plain.dimension])
        return table

    def encode(self, table: Table) -> Vector:
        """The vector nearest to ``table``, in the setting whose columns hold most of it; usual values elsewhere."""
        own = self.alternatives
        sizes = np.abs(table).sum(axis=0)
        row = int(sizes[own.columns].sum(axis=1).argmax())
        number, at = own.settings[row]
        method = own.methods[number]
        chosen = {method.variable(varied): float(i) for varied, i in zip(method.varied, at, strict=True)}
        chosen[METHOD] = float(number)
        choice = [chosen.get(name, float(usual)) for name, _, _, usual in _variables(own)]
        return np.concatenate([self.plain.encode(table[:, own.columns[row]]), choice])

    def started_at(self, table: Table) -> SearchSpace:
        """The space of a search that starts from these coefficients: what is held stays at them."""
        row = self.setting(self.encode(table))
        return choosing(self.plain.started_at(table[:, self.alternatives.columns[row]]), self.alternatives)

    def pull_back(self, gradient: Table, vector: Vector) -> Vector:
        """From dL/dcoefficients [G, D] to dL/dvector [d]; a choice has no slope."""
        slope = self.plain.pull_back(gradient[:, self.columns_at(vector)], vector[: self.plain.dimension])
        return self._with_choices(slope, 0.0)

    def spread(self, vector: Vector) -> Table:
        """A number per variable -> per coefficient, in the columns of every setting."""
        table = np.zeros((self.num_rows, len(self.directions)))
        table[:, self.alternatives.columns] = self.plain.spread(vector[: self.plain.dimension])[:, None, :]
        return table

    def gather_squares(self, squares: Table) -> Vector:
        """float64[d]: of each coefficient's variable as in `SearchSpace`, by the mean over settings; 0 of a choice."""
        return self._with_choices(self.plain.gather_squares(squares[:, self.alternatives.columns].mean(axis=1)), 0.0)

    def _with_choices(self, values: Vector, choice: float) -> Vector:
        return np.concatenate([values, np.full(self.dimension - self.plain.dimension, choice)])


def choosing(plain: SearchSpace, alternatives: Alternatives) -> ChoosingSpace:
    """A space of coefficients that also chooses.

    Args:
        plain: Over the directions that a setting has.
        alternatives: What is chosen among.
    """
    variables = _variables(alternatives)
    shape = (plain.num_rows, len(alternatives.directions))
    index, frozen, held = np.full(shape, -1, dtype=np.int64), np.zeros(shape), np.zeros(shape, dtype=np.bool_)
    for row in alternatives.columns:
        index[:, row], frozen[:, row], held[:, row] = plain.index, plain.frozen, plain.held
    return ChoosingSpace(
        plain.groups,
        tuple(direction.name for direction in alternatives.directions),
        VariableNames([*plain.names.compact, *(name for name, *_ in variables)]),
        np.concatenate([plain.lower, np.zeros(len(variables))]),
        np.concatenate([plain.upper, [len(labels) - 1.0 for _, labels, *_ in variables]]),
        np.concatenate([plain.start, [float(usual) for *_, usual in variables]]),
        index,
        frozen,
        held,
        plain=plain,
        alternatives=alternatives,
    )


def _variables(alternatives: Alternatives) -> list[tuple[str, tuple[str, ...], bool, int]]:
    """Of every choice its name, what its numbers stand for, whether these are in order, and the usual one."""
    methods = alternatives.methods
    found: list[tuple[str, tuple[str, ...], bool, int]] = []
    if len(methods) > 1:
        found.append((METHOD, tuple(method.name for method in methods), False, 0))
    for method in methods:
        for varied in method.varied:
            labels = tuple(str(value) for value in varied.values)
            found.append((method.variable(varied), labels, varied.ordered, varied.usual))
    return found
