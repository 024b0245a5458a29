"""Coefficients that AdaMerging has learnt, as FusionBench and the original code save them, as a recipe.

A tensor [K] has one coefficient per expert ("task-wise"), [K, tensors] or [tensors, K] one per expert and parameter
tensor ("layer-wise" in those codes), in the order of the model's parameters (Yang et al. 2024, equations 4 and 5).

    translation = recipe_from_adamerging(
        Path("merging_weights.pt"), base="zoo/base", experts={"cars": "zoo/cars", "dtd": "zoo/dtd"}, to=Path("r.yaml")
    )
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from optmerge.errors import ConfigError
from optmerge.importers.notes import Notes, comment
from optmerge.importers.references import reference_from
from optmerge.importers.translation import Translation
from optmerge.merging.merge import rows_of_parameters
from optmerge.merging.recipe import FORMAT, Recipe
from optmerge.models.family import Family, open_family


def recipe_from_adamerging(
    file: Path, *, base: str, experts: Mapping[str, str], to: Path, allow_pickle: bool = False
) -> Translation:
    """Translate a file of coefficients.

    Args:
        file: A tensor saved by torch; read without running code.
        base: Reference of the pretrained model, from the working directory.
        experts: Name -> reference, in the order in which the models were merged: the file has no names.
        to: Where the recipe will be; it is not written.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors.

    Raises:
        ConfigError: The file holds no such tensor, or one of another shape than models and experts have.
        ModelError: A model is missing or does not fit the others.
    """
    table = read_coefficients(file)
    folder = to.parent
    references = {name: reference_from(reference, folder) for name, reference in experts.items()}
    family = open_family(
        reference_from(base, folder), references, relative_to=folder, allow_pickle=allow_pickle, check_values=False
    )
    notes = Notes()
    rows = _rows(table, file, list(experts), family, notes)
    body: dict[str, Any] = {
        "optmerge_recipe": FORMAT,
        "base": reference_from(base, folder),
        "experts": references,
        "heads": family.heads,
    }
    if len(rows) == 1:
        body["coefficients"] = _named(rows[0], experts)
    else:
        body["groups"] = [
            {
                "name": name,
                "layer": parameter.role.layer,
                "kind": parameter.role.kind,
                "tensors": list(family.disk_names(name)),
                "coefficients": _named(row, experts),
            }
            for (name, parameter), row in zip(family.parameters.items(), rows, strict=True)
        ]
    said = f"Made from AdaMerging's {file.name} by `optmerge init --from-adamerging`. Make the merge with:"
    head = comment(said) + f"#\n#   optmerge merge {to.name} --to merged\n#\n" + notes.comment()
    text = head + yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    rows_of_parameters(Recipe.from_yaml(text, to), family)  # what is written can be read
    return Translation(text, notes)


def read_coefficients(file: Path) -> torch.Tensor:
    """The tensor in a file that torch has saved, float64, with one or two dimensions.

    Raises:
        ConfigError: The file is missing, or holds something else.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no file {file}. Name the file of merging weights (save_merging_weights)."
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, IsADirectoryError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise ConfigError(
            f"{file} cannot be read as a tensor saved by torch.save ({reason}). Only tensors are read, no code is run: "
            "save them alone, `torch.save(merge_weight.detach().cpu(), FILE)`."
        ) from None
    if not isinstance(found, torch.Tensor) or not found.is_floating_point() or found.dim() not in (1, 2):
        what = (
            f"a tensor {list(found.shape)} of {found.dtype}"
            if isinstance(found, torch.Tensor)
            else type(found).__name__
        )
        raise ConfigError(
            f"{file} holds {what}; expected a tensor of numbers [experts], [experts, tensors] or [tensors, experts]."
        )
    table = found.detach().double()
    if not table.isfinite().all():
        raise ConfigError(f"{file} has coefficients that are not finite; that AdaMerging has diverged.")
    return table


def _rows(table: torch.Tensor, file: Path, experts: list[str], family: Family, notes: Notes) -> list[list[float]]:
    """A row per parameter, or one for all of them."""
    count, tensors = len(experts), len(family.parameters)
    shape = list(table.shape)
    notes.carry(f"{file.name} {shape}", "coefficients of " + ", ".join(experts) + ", in this order")
    if shape == [count]:
        rows = table[None]
    elif count == tensors and table.dim() == 2:
        raise ConfigError(
            f"{file} is {shape}, and there are as many experts as tensors, so it cannot be told which is which. Write "
            "the recipe by hand (docs/recipes.md)."
        )
    elif shape == [count, tensors]:
        rows = table.T
    elif shape == [tensors, count]:
        rows = table
    else:
        raise ConfigError(
            f"{file} is {shape}; with {count} experts ({', '.join(experts)}) and a model of {tensors} merged tensors, "
            f"expected [{count}], [{count}, {tensors}] or [{tensors}, {count}]. Give the experts of that merge, each "
            "once and in its order, by --expert NAME=MODEL; and as models what was merged (a vision tower, or a body "
            "without its head)."
        )
    outside = int(((rows < 0) | (rows > 1)).sum())
    if outside:
        notes.leave(
            f"{outside} coefficients below 0 or above 1",
            "they are cut to that, as AdaMerging's code and FusionBench do (clamp_weights: true) when they merge; if "
            "yours was set to false, write them in by hand",
        )
    values: list[list[float]] = rows.clamp(0.0, 1.0).tolist()
    return values


def _named(row: list[float], experts: Mapping[str, str]) -> dict[str, float]:
    return dict(zip(experts, row, strict=True))
