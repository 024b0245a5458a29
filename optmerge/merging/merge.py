"""A merge outside the search: one parameter at a time, by the same kernel as the resident model's.

for parameter, tensor in iter_merged(recipe, family):
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from optmerge.errors import RecipeError, did_you_mean
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import ChunkBuffers, write_merge
from optmerge.merging.recipe import Recipe

if TYPE_CHECKING:
    from optmerge.models.family import Family


def group_of_parameters(recipe: Recipe, family: Family) -> dict[str, int]:
    """Merged parameter -> row of the recipe's coefficients.

    Raises:
        RecipeError: A tensor is unknown to the base, a parameter is in two groups, or a parameter is in none.
    """
    rows: dict[str, int] = {}
    known = [name for parameter in family.parameters for name in family.disk_names(parameter)]
    known_set = set(known)
    for row, group in enumerate(recipe.groups):
        for tensor in group.tensors:
            if tensor not in known_set:
                raise RecipeError(
                    f"The recipe's group {group.name} names the tensor {tensor}, which the base "
                    f"{recipe.base.reference} does not have among its merged tensors.{did_you_mean(tensor, known)}"
                )
            parameter = family.parameter_of(tensor)
            if rows.setdefault(parameter, row) != row:
                raise RecipeError(
                    f"The recipe puts parts of the parameter {parameter} into the groups "
                    f"{recipe.groups[rows[parameter]].name} and {group.name}; all of it must be in one."
                )
    missing = [parameter for parameter in family.parameters if parameter not in rows]
    if missing:
        raise RecipeError(
            f"The recipe has no coefficient for {len(missing)} of the model's {len(family.parameters)} parameters: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    return rows


def merged_parameter(
    family: Family, deltas: Deltas, coefficients: list[float], parameter: str, buffers: ChunkBuffers
) -> torch.Tensor:
    """One merged parameter in fp32 (fp64 for an fp64 base), module layout, CPU.

    Args:
        family: The base and experts.
        deltas: The recipe's directions.
        coefficients: D numbers, in their order.
        parameter: A name in ``family.parameters``.
        buffers: CPU chunk buffers.
    """
    base = family.read("base", parameter)
    out = torch.empty(base.shape, dtype=buffers.total.dtype)
    write_merge(out, base, deltas.sources(parameter), coefficients, buffers)
    return out


def iter_merged(recipe: Recipe, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """Every merged parameter with its value in fp32, in module order; memory for one at a time.

    Raises:
        RecipeError: The recipe does not fit the family.
    """
    from optmerge.models.cache import cache_dir

    rows = group_of_parameters(recipe, family)
    table = recipe.coefficient_fn()
    deltas = Deltas(family, recipe.directions, cache=cache_dir() / "directions")
    deltas.prepare()
    wide = any(parameter.dtype == torch.float64 for parameter in family.parameters.values())
    buffers = ChunkBuffers(torch.device("cpu"), torch.float64 if wide else torch.float32)
    for parameter in family.parameters:
        yield parameter, merged_parameter(family, deltas, table[rows[parameter]].tolist(), parameter, buffers)
