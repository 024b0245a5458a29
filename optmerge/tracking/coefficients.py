"""Coefficients as a table for people: groups in depth order down, directions across.

    table = from_recipe(recipe)
    table.rows, table.columns, table.values        # labels, labels, float64[G, D]

Depth order: embeddings, the layers by number, then the final norm and the head. A tensor whose slices have coefficients
of their own is one row: their mean, and their standard deviation beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from optmerge.merging.recipe import Recipe
from optmerge.space.names import VariableNames, is_choice

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|/|$)")
_ENDS = ("final-norm", "head")  # kinds that come after the layers
_ALL = "all directions"  # the column of variables that set every direction at once


@dataclass(frozen=True, eq=False)
class Coefficients:
    """A table of coefficients.

    Attributes:
        rows: Names of the G groups.
        layers: The transformer layer of each group, None outside the layers.
        columns: Names of the D directions.
        values: float64[G, D]; NaN where a coefficient is not known.
        spread: float64[G, D], the standard deviation over a tensor's slices; None where no tensor has any.
    """

    rows: tuple[str, ...]
    layers: tuple[int | None, ...]
    columns: tuple[str, ...]
    values: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows' names without the part that all share."""
        if len(self.rows) < 2:
            return self.rows
        parts = [row.split(".") for row in self.rows]
        shared = next(i for i, words in enumerate(zip_longest(*parts)) if len(set(words)) > 1)
        cut = len("".join(f"{word}." for word in parts[0][:shared]))
        return tuple(row[cut:].removesuffix(".weight") for row in self.rows)


def from_recipe(recipe: Recipe) -> Coefficients:
    """The coefficients of a recipe, groups in depth order."""
    kinds = [group.kind for group in recipe.groups]
    layers = [group.layer for group in recipe.groups]
    order = _depth_order(layers, kinds)
    table = np.asarray(recipe.coefficients, dtype=np.float64)
    parts = [table[recipe.rows[row]] for row in order]
    return Coefficients(
        rows=tuple(recipe.groups[row].name for row in order),
        layers=tuple(layers[row] for row in order),
        columns=tuple(direction.name for direction in recipe.directions),
        values=np.array([part.mean(axis=0) for part in parts]),
        spread=np.array([part.std(axis=0) for part in parts]) if len(table) > len(parts) else None,
    )


def from_vector(variables: Sequence[str], vector: npt.NDArray[np.float64]) -> Coefficients:
    """The coefficients that a vector sets, by its variables' names ("group/direction"); frozen ones are not known.

    Args:
        variables: As a run's manifest has them: the slices of a tensor are one entry.
        vector: float64[d].
    """
    groups: dict[str, int] = {}
    columns: dict[str, int] = {}
    cells: list[tuple[int, int, npt.NDArray[np.float64]]] = []
    for name, at in coefficient_spans(VariableNames(variables)):
        group, direction = split_variable(name)
        row, column = groups.setdefault(group, len(groups)), columns.setdefault(direction, len(columns))
        cells.append((row, column, vector[at]))
    values, spread = np.full((2, len(groups), len(columns)), np.nan)
    for row, column, part in cells:
        values[row, column], spread[row, column] = part.mean(), part.std()
    layers = [layer_of(group) for group in groups]
    order = _depth_order(layers, ["final-norm" if group in _ENDS else "" for group in groups])
    names = list(groups)
    return Coefficients(
        rows=tuple(names[row] for row in order),
        layers=tuple(layers[row] for row in order),
        columns=tuple(columns),
        values=values[order],
        spread=spread[order] if any(part.size > 1 for _, _, part in cells) else None,
    )


def coefficient_spans(names: VariableNames) -> Iterator[tuple[str, slice]]:
    """The stretches of variables that are coefficients; what a search chooses beside them has none.

    >>> list(coefficient_spans(VariableNames(["model/a", "method", "ties-split.density"])))
    [('model/a', slice(0, 1, None))]
    """
    return ((name, at) for name, at in names.spans() if not is_choice(name))


def split_variable(name: str) -> tuple[str, str]:
    """A variable's group and direction.

    >>> split_variable("layer.3/sentiment"), split_variable("model")
    (('layer.3', 'sentiment'), ('model', 'all directions'))
    >>> split_variable("layer.3/org/expert")
    ('layer.3', 'org/expert')
    """
    group, _, direction = name.partition("/")
    return group, direction or _ALL


def layer_of(group: str) -> int | None:
    """The layer in a group's name, where it holds one.

    >>> layer_of("bert.encoder.layer.11.output.dense.weight"), layer_of("embedding")
    (11, None)
    """
    found = _LAYER.search(group)
    return int(found[1]) if found else None


def _depth_order(layers: Sequence[int | None], kinds: Sequence[str]) -> list[int]:
    """Input side first: what has no layer and comes before the first layer, the layers, then the rest."""
    numbered = [row for row, layer in enumerate(layers) if layer is not None]
    first = numbered[0] if numbered else len(layers)

    def depth(row: int) -> tuple[int, int, int]:
        layer = layers[row]
        if layer is not None:
            return 1, layer, row
        after = kinds[row] in _ENDS or (row > first and kinds[row] != "embedding")
        return (2, 0, row) if after else (0, 0, row)

    return sorted(range(len(layers)), key=depth)
