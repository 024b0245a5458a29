"""The directions of a recipe file: task vectors, whole methods, parts of methods and bands of singular components.

    read_directions(reader, ["experts", "ties"], {"math": entry}, "task_arithmetic")

An entry is a name (``experts``, an expert, a method at its usual settings) or a mapping with ``expert``, ``method`` or
both. `optmerge.merging.recipe_file` reads the rest of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optmerge.config.alternatives import IN_PARTS
from optmerge.config.methods import METHOD_CONFIGS, CustomMethodConfig
from optmerge.config.methods.own import title
from optmerge.config.spectral import DIRECTION_CONFIGS, DirectionConfig, SpectralConfig
from optmerge.errors import did_you_mean
from optmerge.merging.recipe import Direction, ModelEntry
from optmerge.merging.recipe_reader import Reader, shown

_METHOD: TypeAdapter[DirectionConfig] = TypeAdapter(DirectionConfig)
_CONFIGS = METHOD_CONFIGS | DIRECTION_CONFIGS | {"custom": CustomMethodConfig}


def read_own_method(reader: Reader, value: object) -> str:
    """What a search made of its experts: a record, since each direction has the method that makes it.

    Raises:
        RecipeError: It is no method that is a sum of one part per expert.
    """
    if value not in IN_PARTS:
        meant = value if isinstance(value, str) and value in METHOD_CONFIGS else "ties"
        raise reader.fail(
            f"method is {shown(value)}; expected task_arithmetic, or nothing. A whole method is a direction, with "
            f"a coefficient of its own: write `directions: [{meant}]`."
        )
    return str(value)


def read_directions(
    reader: Reader, value: object, experts: Mapping[str, ModelEntry], method: str
) -> tuple[Direction, ...]:
    """The directions in their order, ``experts`` as one task vector each.

    Args:
        reader: Of the recipe.
        value: What the recipe has under ``directions``.
        experts: The recipe's experts by name.
        method: What the search made of its experts, see `read_own_method`.

    Raises:
        RecipeError: An entry is malformed or names something unknown; or a name stands twice, or there is none.
    """
    found: list[Direction] = []
    for index, entry in enumerate(reader.listing(value, "directions")):
        where = f"directions[{index}]"
        if entry == "experts":
            if method != "task_arithmetic":
                first = next(iter(experts))
                raise reader.fail(
                    f"{where} is 'experts', the task vectors as they are, and method is {method!r}. Leave method "
                    f"out, or write one direction per expert: `{{expert: {first}, method: {{name: {method}}}}}`."
                )
            found += [Direction(name, "expert") for name in experts]
        elif isinstance(entry, str):
            found.append(_named(reader, entry, experts, where))
        else:
            found.append(_stated(reader, reader.mapping(entry, where), experts, where))
    names = [direction.name for direction in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        what = f"{twice[0]!r} stands {names.count(twice[0])} times" if twice else "there are none"
        raise reader.fail(f"directions: {what}; each direction stands once, and there is at least one.")
    return tuple(found)


def _named(reader: Reader, name: str, experts: Mapping[str, ModelEntry], where: str) -> Direction:
    if name in experts:
        return Direction(name, "expert")
    methods = [method for method in METHOD_CONFIGS if method != "task_arithmetic"]
    if name in methods:
        return Direction(name, "method", _method(reader, {"name": name}, where))
    known = ("experts", *experts, *methods)
    raise reader.fail(
        f"{where} is {name!r}; expected experts, one of the experts {', '.join(experts)}, or one of the methods "
        f"{', '.join(methods)}.{did_you_mean(name, known)}"
    )


def _stated(reader: Reader, entry: dict[str, Any], experts: Mapping[str, ModelEntry], where: str) -> Direction:
    reader.known(entry, ("name", "expert", "method", "band", "stored", "sha256"), where)
    if "expert" not in entry and "method" not in entry:
        raise reader.fail(
            f"{where} has the keys {', '.join(map(str, entry))}; expected name with expert, method, or both."
        )
    expert = reader.choice(entry["expert"], tuple(experts), f"{where}.expert") if "expert" in entry else ""
    if "method" not in entry:
        if entry.get("name", expert) != expert:
            raise reader.fail(
                f"{where}.name is {shown(entry['name'])}; an expert's direction is called as it: {expert}."
            )
        return Direction(expert, "expert")
    config = _method(reader, reader.mapping(entry["method"], f"{where}.method"), f"{where}.method")
    if isinstance(config, CustomMethodConfig) and isinstance(reader.path, Path):
        config = config.beside(reader.path.parent)
    if isinstance(config, SpectralConfig):
        return _band(reader, entry, config, expert, where)
    if "band" in entry:
        raise reader.fail(f"{where} has a band, and its method is {config.name}; only spectral has bands.")
    if expert and config.name not in IN_PARTS:
        raise reader.fail(
            f"{where} is the part that {expert} has in {config.name}, and that method is not a sum of parts; "
            f"those that are: {', '.join(IN_PARTS)}."
        )
    usual = f"{title(config)}:{expert}" if expert else title(config)
    stored = reader.text(entry["stored"], f"{where}.stored") if "stored" in entry else None
    if stored is not None and isinstance(reader.path, Path):
        stored = str(reader.path.parent.absolute() / stored)
    digest = reader.text(entry["sha256"], f"{where}.sha256") if entry.get("sha256") is not None else None
    name = reader.text(entry.get("name", usual), f"{where}.name")
    return Direction(name, "part" if expert else "method", config, expert, stored, digest)


def _band(reader: Reader, entry: dict[str, Any], config: SpectralConfig, expert: str, where: str) -> Direction:
    """One of the bands of singular components."""
    band = reader.need(entry, "band", where)
    if not isinstance(band, int) or not 1 <= band <= config.bands:
        raise reader.fail(f"{where}.band is {shown(band)}; expected a whole number from 1 to {config.bands}.")
    if bool(expert) != config.by_expert:
        whose = "of every expert apart; add expert" if config.by_expert else "of no single expert; take expert out"
        raise reader.fail(f"{where}: bands of {config.of} are {whose}.")
    usual = f"spectral.{band}:{expert}" if expert else f"spectral.{band}"
    return Direction(reader.text(entry.get("name", usual), f"{where}.name"), "part", config, expert, band=band)


def _method(reader: Reader, settings: Mapping[str, Any], where: str) -> DirectionConfig:
    try:
        return _METHOD.validate_python(settings)
    except ValidationError as problem:
        error = problem.errors()[0]
        if error["type"].startswith("union_tag"):
            name = settings.get("name")
            raise reader.fail(
                f"{where}.name is {shown(name)}; expected one of {', '.join(_CONFIGS)}."
                f"{did_you_mean(str(name), _CONFIGS)}"
            ) from None
        place = ".".join([where, *map(str, error["loc"][1:])])
        if error["type"] == "extra_forbidden":
            known = list(_CONFIGS[str(settings["name"])].model_fields)
            near = did_you_mean(str(error["loc"][-1]), known)
            raise reader.fail(f"{place} is no setting of the method, which has {', '.join(known)}.{near}") from None
        raise reader.fail(f"{place}: {error['msg']}.") from None
