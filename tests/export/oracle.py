"""A merge written down again in plain torch, one whole parameter at a time: what the streamed one must equal.

values = merged_values(recipe, family)                 # parameter -> fp32, module layout
tensors = tensors_on_disk(recipe, family)              # name on disk -> tensor in the recipe's dtype
"""

from __future__ import annotations

import torch

from optmerge.merging.merge import rows_of_parameters
from optmerge.merging.recipe import Recipe
from optmerge.merging.slices import Chunks, Columns, Cut, Rows
from optmerge.models.family import Family


def merged_values(recipe: Recipe, family: Family) -> dict[str, torch.Tensor]:
    """base + (sum of coefficient * (expert - base), added in direction order in fp32), before any cast."""
    rows = rows_of_parameters(recipe, family)
    names = [direction.name for direction in recipe.directions]
    values = {}
    for parameter in family.parameters:
        base = family.read("base", parameter).float()
        first, cut = rows.first[parameter], rows.cuts.get(parameter)
        if cut is not None:
            total = torch.zeros_like(base)
            for column, name in enumerate(names):
                own = torch.tensor(recipe.coefficients[first : first + cut.count, column].tolist())
                total = total + (family.read(name, parameter).float() - base) * own[elements(cut)].view(base.shape)
            values[parameter] = base + total
            continue
        row = dict(zip(names, recipe.coefficients[first].tolist(), strict=True))
        used = {name: c for name, c in row.items() if c}
        if list(used.values()) == [1.0]:
            values[parameter] = family.read(next(iter(used)), parameter).float()
            continue
        total = torch.zeros_like(base)
        for position, (name, c) in enumerate(used.items()):
            scaled = (family.read(name, parameter).float() - base) * torch.tensor(c, dtype=torch.float32)
            total = total + scaled if position else scaled
        values[parameter] = base + total if used else base
    return values


def elements(cut: Cut) -> list[int]:
    """The group of every element, by definition."""
    match cut:
        case Columns(matrices, rows, width):
            return [m * width + c for m in range(matrices) for _ in range(rows) for c in range(width)]
        case Rows(count, width):
            return [row for row in range(count) for _ in range(width)]
        case Chunks(bounds):
            return [g for g in range(len(bounds) - 1) for _ in range(bounds[g], bounds[g + 1])]


def tensors_on_disk(recipe: Recipe, family: Family, naming: str = "base") -> dict[str, torch.Tensor]:
    """The merged tensors under one checkpoint's names and layout; what is not merged is left out."""
    layout, values = family.maps[naming], merged_values(recipe, family)
    dtype = getattr(torch, recipe.dtype)
    everything = {
        owner: values[owner] if owner in values else family.read(naming, owner)
        for owner in dict.fromkeys(piece.parameter for piece in layout.pieces)
    }
    names = dict.fromkeys(disk for parameter in values for disk in layout.disk_names(parameter))
    return {disk: layout.disk_tensor(disk, everything).to(dtype) for disk in names}
