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
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from optmerge.config.alternatives import IN_PARTS
from optmerge.config.methods import METHOD_CONFIGS, CustomMethodConfig
from optmerge.config.methods.own import title
from optmerge.config.spectral import DIRECTION_CONFIGS, DirectionConfig, SpectralConfig
from optmerge.errors import RecipeError, did_you_mean
from optmerge.merging.coefficients import Static, Table
from optmerge.merging.recipe import (
    DTYPES,
    EVERYTHING,
    FORMAT,
    HEADS,
    VOCABULARIES,
    Direction,
    Group,
    ModelEntry,
    Recipe,
)
from optmerge.merging.recipe_slices import read_slices
from optmerge.merging.slices import Cut, cut_from_dict

KEYS = (
    *("optmerge_recipe", "method", "base", "experts", "directions", "heads", "dtype", "tokenizer", "vocabulary"),
    *("created", "slices", "groups", "coefficients"),
)
_METHOD: TypeAdapter[DirectionConfig] = TypeAdapter(DirectionConfig)
_CONFIGS = METHOD_CONFIGS | DIRECTION_CONFIGS | {"custom": CustomMethodConfig}


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
    reader = _Reader(path)
    reader.known(body, KEYS, "a recipe")
    base = reader.entry(reader.need(body, "base", "a recipe"), "base")
    experts = {
        str(name): reader.entry(value, f"experts.{name}")
        for name, value in reader.mapping(reader.need(body, "experts", "a recipe"), "experts").items()
    }
    if not experts or "base" in experts:
        what = "names no expert" if not experts else "calls an expert 'base', which stands for the base"
        raise RecipeError(f"{path} {what}. Write `experts:` with one `name: model` per expert.")
    method = reader.own_method(body.get("method", "task_arithmetic"))
    directions = reader.directions(body.get("directions", ["experts"]), experts, method)
    names = [direction.name for direction in directions]
    if ("groups" in body) == ("coefficients" in body):
        both = "has both groups and coefficients" if "groups" in body else "has neither groups nor coefficients"
        raise RecipeError(
            f"{path} {both}. Write `coefficients: {{{', '.join(f'{name}: 0.3' for name in names)}}}` for one number "
            "per direction, or `groups` for numbers that differ between tensors."
        )
    slices = reader.slices(body["slices"]) if "slices" in body else {}
    if "groups" in body:
        groups, table = reader.groups(body["groups"], names, slices)
        unused = sorted(set(slices) - {group.name for group in groups if group.cut is not None})
    else:
        groups = (Group("model", (EVERYTHING,), None, "model"),)
        table = np.array([reader.row(body["coefficients"], names, "coefficients")])
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


class _Reader:
    """Reads the parts of a recipe; errors name the file and the key."""

    def __init__(self, path: Path | str) -> None:
        self.path = path

    def fail(self, what: str) -> RecipeError:
        return RecipeError(f"{self.path}: {what}")

    def known(self, body: Mapping[Any, Any], keys: Sequence[str], owner: str) -> None:
        for key in body:
            if key not in keys:
                near = did_you_mean(str(key), keys)
                raise self.fail(f"{key!r} is not a key of {owner}, which has {', '.join(keys)}.{near}")

    def need(self, body: Mapping[Any, Any], key: str, owner: str) -> Any:
        if key not in body:
            raise self.fail(f"the key {key!r} is missing from {owner}.")
        return body[key]

    def mapping(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.fail(f"{where} is {_shown(value)}; expected a mapping.")
        return value

    def listing(self, value: object, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.fail(f"{where} is {_shown(value)}; expected a list.")
        return value

    def text(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not value:
            raise self.fail(f"{where} is {_shown(value)}; expected a text.")
        return value

    def choice(self, value: object, allowed: Sequence[str], where: str) -> str:
        if value not in allowed:
            near = did_you_mean(str(value), allowed)
            raise self.fail(f"{where} is {_shown(value)}; expected one of {', '.join(allowed)}.{near}")
        return str(value)

    def entry(self, value: object, where: str) -> ModelEntry:
        """A model: its reference, or a mapping with its hash and revision too."""
        if isinstance(value, str) and value:
            return ModelEntry(value)
        if not isinstance(value, dict):
            raise self.fail(
                f"{where} is {_shown(value)}; expected a model: a folder, org/name[@revision], or model+adapter."
            )
        self.known(value, ("reference", "sha256", "revision"), where)
        stated = {key: self.text(value[key], f"{where}.{key}") for key in value if value[key] is not None}
        return ModelEntry(self.need(stated, "reference", where), stated.get("sha256"), stated.get("revision"))

    def own_method(self, value: object) -> str:
        """What a search made of its experts: a record, since each direction has the method that makes it."""
        if value not in IN_PARTS:
            meant = value if isinstance(value, str) and value in METHOD_CONFIGS else "ties"
            raise self.fail(
                f"method is {_shown(value)}; expected task_arithmetic, or nothing. A whole method is a direction, with "
                f"a coefficient of its own: write `directions: [{meant}]`."
            )
        return str(value)

    def directions(self, value: object, experts: Mapping[str, ModelEntry], method: str) -> tuple[Direction, ...]:
        found: list[Direction] = []
        for index, entry in enumerate(self.listing(value, "directions")):
            where = f"directions[{index}]"
            if entry == "experts":
                if method != "task_arithmetic":
                    first = next(iter(experts))
                    raise self.fail(
                        f"{where} is 'experts', the task vectors as they are, and method is {method!r}. Leave method "
                        f"out, or write one direction per expert: `{{expert: {first}, method: {{name: {method}}}}}`."
                    )
                found += [Direction(name, "expert") for name in experts]
            elif isinstance(entry, str):
                found.append(self.named_direction(entry, experts, where))
            else:
                found.append(self.direction(self.mapping(entry, where), experts, where))
        names = [direction.name for direction in found]
        twice = [name for name in names if names.count(name) > 1]
        if twice or not names:
            what = f"{twice[0]!r} stands {names.count(twice[0])} times" if twice else "there are none"
            raise self.fail(f"directions: {what}; each direction stands once, and there is at least one.")
        return tuple(found)

    def named_direction(self, name: str, experts: Mapping[str, ModelEntry], where: str) -> Direction:
        if name in experts:
            return Direction(name, "expert")
        methods = [method for method in METHOD_CONFIGS if method != "task_arithmetic"]
        if name in methods:
            return Direction(name, "method", self.method({"name": name}, where))
        known = ("experts", *experts, *methods)
        raise self.fail(
            f"{where} is {name!r}; expected experts, one of the experts {', '.join(experts)}, or one of the methods "
            f"{', '.join(methods)}.{did_you_mean(name, known)}"
        )

    def direction(self, entry: dict[str, Any], experts: Mapping[str, ModelEntry], where: str) -> Direction:
        self.known(entry, ("name", "expert", "method", "band", "stored", "sha256"), where)
        if "expert" not in entry and "method" not in entry:
            raise self.fail(
                f"{where} has the keys {', '.join(map(str, entry))}; expected name with expert, method, or both."
            )
        expert = self.choice(entry["expert"], tuple(experts), f"{where}.expert") if "expert" in entry else ""
        if "method" not in entry:
            if entry.get("name", expert) != expert:
                raise self.fail(
                    f"{where}.name is {_shown(entry['name'])}; an expert's direction is called as it: {expert}."
                )
            return Direction(expert, "expert")
        config = self.method(self.mapping(entry["method"], f"{where}.method"), f"{where}.method")
        if isinstance(config, CustomMethodConfig) and isinstance(self.path, Path):
            config = config.beside(self.path.parent)
        if isinstance(config, SpectralConfig):
            return self.band(entry, config, expert, where)
        if "band" in entry:
            raise self.fail(f"{where} has a band, and its method is {config.name}; only spectral has bands.")
        if expert and config.name not in IN_PARTS:
            raise self.fail(
                f"{where} is the part that {expert} has in {config.name}, and that method is not a sum of parts; "
                f"those that are: {', '.join(IN_PARTS)}."
            )
        usual = f"{title(config)}:{expert}" if expert else title(config)
        stored = self.text(entry["stored"], f"{where}.stored") if "stored" in entry else None
        if stored is not None and isinstance(self.path, Path):
            stored = str(self.path.parent.absolute() / stored)
        digest = self.text(entry["sha256"], f"{where}.sha256") if entry.get("sha256") is not None else None
        name = self.text(entry.get("name", usual), f"{where}.name")
        return Direction(name, "part" if expert else "method", config, expert, stored, digest)

    def band(self, entry: dict[str, Any], config: SpectralConfig, expert: str, where: str) -> Direction:
        """One of the bands of singular components."""
        band = self.need(entry, "band", where)
        if not isinstance(band, int) or not 1 <= band <= config.bands:
            raise self.fail(f"{where}.band is {_shown(band)}; expected a whole number from 1 to {config.bands}.")
        if bool(expert) != config.by_expert:
            whose = "of every expert apart; add expert" if config.by_expert else "of no single expert; take expert out"
            raise self.fail(f"{where}: bands of {config.of} are {whose}.")
        usual = f"spectral.{band}:{expert}" if expert else f"spectral.{band}"
        return Direction(self.text(entry.get("name", usual), f"{where}.name"), "part", config, expert, band=band)

    def method(self, settings: Mapping[str, Any], where: str) -> DirectionConfig:
        try:
            return _METHOD.validate_python(settings)
        except ValidationError as problem:
            error = problem.errors()[0]
            if error["type"].startswith("union_tag"):
                name = settings.get("name")
                raise self.fail(
                    f"{where}.name is {_shown(name)}; expected one of {', '.join(_CONFIGS)}."
                    f"{did_you_mean(str(name), _CONFIGS)}"
                ) from None
            place = ".".join([where, *map(str, error["loc"][1:])])
            if error["type"] == "extra_forbidden":
                known = list(_CONFIGS[str(settings["name"])].model_fields)
                near = did_you_mean(str(error["loc"][-1]), known)
                raise self.fail(f"{place} is no setting of the method, which has {', '.join(known)}.{near}") from None
            raise self.fail(f"{place}: {error['msg']}.") from None

    def groups(
        self, value: object, names: Sequence[str], slices: Mapping[str, Table]
    ) -> tuple[tuple[Group, ...], Table]:
        """The groups, and the rows of all of them."""
        groups, rows = [], []
        owner: dict[str, str] = {}
        keys = ("name", "layer", "kind", "tensors", "slices", "coefficients")
        for index, entry in enumerate(self.listing(value, "groups")):
            where = f"groups[{index}]"
            self.known(self.mapping(entry, where), keys, where)
            name = self.text(entry.get("name", where), f"{where}.name")
            stated = self.need(entry, "tensors", where)
            tensors = (EVERYTHING,) if stated == EVERYTHING else tuple(self.listing(stated, f"{where}.tensors"))
            for tensor in tensors:
                if self.text(tensor, f"{where}.tensors") in owner:
                    raise self.fail(f"tensor {tensor} is in group {owner[tensor]} and in group {name}.")
                owner[tensor] = name
            layer = entry.get("layer")
            if layer is not None and not isinstance(layer, int):
                raise self.fail(f"{where}.layer is {_shown(layer)}; expected a whole number or nothing.")
            if "slices" in entry and "coefficients" in entry:
                raise self.fail(f"{where} has both slices and coefficients; those of slices are in the file beside it.")
            cut = self.cut(entry["slices"], f"{where}.slices") if "slices" in entry else None
            groups.append(Group(name, tensors, layer, self.text(entry.get("kind", "other"), f"{where}.kind"), cut))
            if cut is None:
                rows.append(np.array([self.row(self.need(entry, "coefficients", where), names, f"group {name}")]))
            else:
                rows.append(self.sliced_rows(slices, groups[-1], len(names)))
        if not groups:
            raise self.fail("groups is empty; expected at least one group, with its tensors and coefficients.")
        return tuple(groups), np.concatenate(rows)

    def slices(self, value: object) -> dict[str, Table]:
        """The coefficients of groups that are cut, from the file beside the recipe."""
        body = self.mapping(value, "slices")
        self.known(body, ("file", "sha256"), "slices")
        name = self.text(self.need(body, "file", "slices"), "slices.file")
        digest = self.text(self.need(body, "sha256", "slices"), "slices.sha256")
        if Path(name).name != name:
            raise self.fail(f"slices.file is {_shown(name)}; expected the name of a file beside the recipe.")
        return read_slices(Path(self.path).with_name(name), digest)

    def cut(self, value: object, where: str) -> Cut:
        try:
            return cut_from_dict(self.mapping(value, where))
        except ValueError as problem:
            raise self.fail(f"{where} is {_shown(value)}: {problem}.") from None

    def sliced_rows(self, slices: Mapping[str, Table], group: Group, directions: int) -> Table:
        if group.name not in slices:
            raise self.fail(
                f"group {group.name} has slices, and there are no coefficients for it: `slices` at the top of a recipe "
                "names the file with them. Recipes of slices are saved by searches, not written by hand."
            )
        table = slices[group.name]
        if table.shape != (group.count, directions) or not np.isfinite(table).all():
            raise self.fail(
                f"the coefficients of the slices of {group.name} have shape {list(table.shape)}; expected finite "
                f"numbers of shape [{group.count}, {directions}]."
            )
        return table

    def row(self, value: object, names: Sequence[str], where: str) -> list[float]:
        """One number per direction."""
        stated = {str(name): number for name, number in self.mapping(value, where).items()}  # an expert may be called 1
        for name in stated:
            if name not in names:
                near = did_you_mean(name, names)
                raise self.fail(f"{where} has a coefficient of {name!r}; the directions are {', '.join(names)}.{near}")
        row = []
        for name in names:
            if name not in stated:
                raise self.fail(f"{where} has no coefficient of {name!r}. Write 0 to leave a direction out.")
            number = stated[name]
            if isinstance(number, str):  # YAML reads 1e-3 as a text
                number = _number(number)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise self.fail(
                    f"the coefficient of {name} in {where} is {_shown(stated[name])}; expected a finite number."
                )
            row.append(float(number))
        return row


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
