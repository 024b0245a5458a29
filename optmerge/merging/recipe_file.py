"""Recipe files as people write them: the full form that a search saves, and a short one.

The short form leaves out everything that has a usual value:

    optmerge_recipe: 1
    base: zoo/base
    experts:
      math: zoo/math
      code: org/code@v2
    coefficients: {math: 0.4, code: 0.3}      # for every merged tensor

``directions`` is then the experts' task vectors, ``heads`` and ``dtype`` are ``auto`` (heads are merged where they can
be; the base's type), ``tokenizer`` is the base's, and ``vocabulary`` is ``refuse`` (see `optmerge.models.vocabulary`).
``directions: [experts, ties]`` adds a whole method with its usual settings, ``{name: ties, method: {name: ties,
density: 0.5}}`` one with others. ``groups`` in the place of ``coefficients`` gives different tensors different ones; a
group of the tensors ``"*"`` has those that no other names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from optmerge.errors import RecipeError, did_you_mean
from optmerge.merging.coefficients import Static, Table
from optmerge.merging.recipe import (
    DTYPES,
    EVERYTHING,
    FORMAT,
    HEADS,
    VOCABULARIES,
    Group,
    Recipe,
)
from optmerge.merging.recipe_directions import read_directions, read_own_method
from optmerge.merging.recipe_reader import Reader, shown
from optmerge.merging.recipe_slices import read_slices
from optmerge.merging.slices import Cut, cut_from_dict

KEYS = (
    *("optmerge_recipe", "method", "base", "experts", "directions", "heads", "dtype", "tokenizer", "vocabulary"),
    *("created", "slices", "groups", "coefficients"),
)


def parse(body: object, path: Path | str) -> Recipe:
    """A recipe from what its YAML says.

    Args:
        body: The YAML's content.
        path: What errors call it.

    Raises:
        RecipeError: Something is missing, unknown or malformed; one paragraph says what, and what was expected.
    """
    if not isinstance(body, dict) or "optmerge_recipe" not in body:
        raise RecipeError(
            f"{path} is not an optmerge recipe: the key optmerge_recipe is missing. A run's best recipe is recipe.yaml "
            f"in its folder; one written by hand begins with `optmerge_recipe: {FORMAT}`."
        )
    if body["optmerge_recipe"] != FORMAT:
        raise RecipeError(
            f"{path} has recipe format {body['optmerge_recipe']}; this optmerge reads {FORMAT}. Upgrade optmerge."
        )
    reader = Reader(path)
    reader.known(body, KEYS, "a recipe")
    base = reader.entry(reader.need(body, "base", "a recipe"), "base")
    experts = {
        str(name): reader.entry(value, f"experts.{name}")
        for name, value in reader.mapping(reader.need(body, "experts", "a recipe"), "experts").items()
    }
    if not experts or "base" in experts:
        what = "names no expert" if not experts else "calls an expert 'base', which stands for the base"
        raise RecipeError(f"{path} {what}. Write `experts:` with one `name: model` per expert.")
    method = read_own_method(reader, body.get("method", "task_arithmetic"))
    directions = read_directions(reader, body.get("directions", ["experts"]), experts, method)
    names = [direction.name for direction in directions]
    if ("groups" in body) == ("coefficients" in body):
        both = "has both groups and coefficients" if "groups" in body else "has neither groups nor coefficients"
        raise RecipeError(
            f"{path} {both}. Write `coefficients: {{{', '.join(f'{name}: 0.3' for name in names)}}}` for one number "
            "per direction, or `groups` for numbers that differ between tensors."
        )
    slices = _slices(reader, body["slices"]) if "slices" in body else {}
    if "groups" in body:
        groups, table = _groups(reader, body["groups"], names, slices)
        unused = sorted(set(slices) - {group.name for group in groups if group.cut is not None})
    else:
        groups = (Group("model", (EVERYTHING,), None, "model"),)
        table = np.array([_row(reader, body["coefficients"], names, "coefficients")])
        unused = sorted(slices)
    if unused:
        raise RecipeError(
            f"{path}: slices.file has coefficients of {', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}, and "
            "the recipe has no group with slices of that name. Recipes of slices are saved by searches, not written by "
            "hand; use the one that the file was saved with."
        )
    return Recipe(
        base=base,
        experts=experts,
        directions=directions,
        groups=groups,
        coefficient_fn=Static(table),
        method=method,
        heads=reader.choice(body.get("heads", "auto"), HEADS, "heads"),  # type: ignore[arg-type]
        dtype=reader.choice(body.get("dtype", "auto"), DTYPES, "dtype"),
        tokenizer=reader.choice(body.get("tokenizer", "base"), ("base", *experts), "tokenizer"),
        vocabulary=reader.choice(body.get("vocabulary", "refuse"), VOCABULARIES, "vocabulary"),  # type: ignore[arg-type]
        created=reader.mapping(body.get("created") or {}, "created"),
    )


def _groups(
    reader: Reader, value: object, names: Sequence[str], slices: Mapping[str, Table]
) -> tuple[tuple[Group, ...], Table]:
    """The groups, and the rows of all of them."""
    groups, rows = [], []
    owner: dict[str, str] = {}
    keys = ("name", "layer", "kind", "tensors", "slices", "coefficients")
    for index, entry in enumerate(reader.listing(value, "groups")):
        where = f"groups[{index}]"
        reader.known(reader.mapping(entry, where), keys, where)
        name = reader.text(entry.get("name", where), f"{where}.name")
        stated = reader.need(entry, "tensors", where)
        tensors = (EVERYTHING,) if stated == EVERYTHING else tuple(reader.listing(stated, f"{where}.tensors"))
        for tensor in tensors:
            if reader.text(tensor, f"{where}.tensors") in owner:
                raise reader.fail(f"tensor {tensor} is in group {owner[tensor]} and in group {name}.")
            owner[tensor] = name
        layer = entry.get("layer")
        if layer is not None and not isinstance(layer, int):
            raise reader.fail(f"{where}.layer is {shown(layer)}; expected a whole number or nothing.")
        if "slices" in entry and "coefficients" in entry:
            raise reader.fail(f"{where} has both slices and coefficients; those of slices are in the file beside it.")
        cut = _cut(reader, entry["slices"], f"{where}.slices") if "slices" in entry else None
        groups.append(Group(name, tensors, layer, reader.text(entry.get("kind", "other"), f"{where}.kind"), cut))
        if cut is None:
            rows.append(np.array([_row(reader, reader.need(entry, "coefficients", where), names, f"group {name}")]))
        else:
            rows.append(_sliced_rows(reader, slices, groups[-1], len(names)))
    if not groups:
        raise reader.fail("groups is empty; expected at least one group, with its tensors and coefficients.")
    return tuple(groups), np.concatenate(rows)


def _slices(reader: Reader, value: object) -> dict[str, Table]:
    """The coefficients of groups that are cut, from the file beside the recipe."""
    body = reader.mapping(value, "slices")
    reader.known(body, ("file", "sha256"), "slices")
    name = reader.text(reader.need(body, "file", "slices"), "slices.file")
    digest = reader.text(reader.need(body, "sha256", "slices"), "slices.sha256")
    if Path(name).name != name:
        raise reader.fail(f"slices.file is {shown(name)}; expected the name of a file beside the recipe.")
    return read_slices(Path(reader.path).with_name(name), digest)


def _cut(reader: Reader, value: object, where: str) -> Cut:
    try:
        return cut_from_dict(reader.mapping(value, where))
    except ValueError as problem:
        raise reader.fail(f"{where} is {shown(value)}: {problem}.") from None


def _sliced_rows(reader: Reader, slices: Mapping[str, Table], group: Group, directions: int) -> Table:
    if group.name not in slices:
        raise reader.fail(
            f"group {group.name} has slices, and there are no coefficients for it: `slices` at the top of a recipe "
            "names the file with them. Recipes of slices are saved by searches, not written by hand."
        )
    table = slices[group.name]
    if table.shape != (group.count, directions) or not np.isfinite(table).all():
        raise reader.fail(
            f"the coefficients of the slices of {group.name} have shape {list(table.shape)}; expected finite "
            f"numbers of shape [{group.count}, {directions}]."
        )
    return table


def _row(reader: Reader, value: object, names: Sequence[str], where: str) -> list[float]:
    """One number per direction."""
    stated = {str(name): number for name, number in reader.mapping(value, where).items()}  # an expert may be called 1
    for name in stated:
        if name not in names:
            near = did_you_mean(name, names)
            raise reader.fail(f"{where} has a coefficient of {name!r}; the directions are {', '.join(names)}.{near}")
    row = []
    for name in names:
        if name not in stated:
            raise reader.fail(f"{where} has no coefficient of {name!r}. Write 0 to leave a direction out.")
        number = stated[name]
        if isinstance(number, str):  # YAML reads 1e-3 as a text
            number = _number(number)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise reader.fail(
                f"the coefficient of {name} in {where} is {shown(stated[name])}; expected a finite number."
            )
        row.append(float(number))
    return row


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text
