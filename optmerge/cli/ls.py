"""``optmerge ls``: what there is to choose from; with a search file, or with models, how large each space would be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optmerge.cli.completion import KINDS, kinds
from optmerge.cli.options import Json
from optmerge.cli.output import Output

if TYPE_CHECKING:
    from optmerge.config.base import Strict
    from optmerge.config.methods_page import MethodRow
    from optmerge.merging.alternatives import Alternatives
    from optmerge.merging.recipe import Direction
    from optmerge.models.family import Family


def ls(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", autocompletion=kinds, help=f"One of {', '.join(KINDS)}; all of them if not given."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A search file, to show each space's dimension.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A base model, in the place of FILE; with --expert.")
    ] = None,
    expert: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="An expert fine-tuned from it; may be repeated.")
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:CLASS", help="A method of your own, shown among the others; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """List spaces, objectives, schedules, drivers and methods."""
    from optmerge.errors import ConfigError, did_you_mean

    if kind is not None and kind not in KINDS:
        if file is not None or not Path(kind).suffix:
            raise ConfigError(f"{kind!r} is not a kind; expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
        file, kind = Path(kind), None  # optmerge ls search.yaml
    wanted = (kind,) if kind else KINDS
    models = _models(file, base, expert or []) if "spaces" in wanted else None
    listing: dict[str, list[dict[str, Any]]] = {}
    rows: list[MethodRow] = []
    for each in wanted:
        if each == "spaces":
            listing[each] = _spaces(models)
        elif each == "objectives":
            listing[each] = _objectives()
        elif each == "schedules":
            listing[each] = _schedules()
        elif each == "drivers":
            listing[each] = _drivers()
        else:
            rows = _method_rows(file, own or [])
            listing[each] = _methods(rows)
    output = Output(json)
    output.facts(listing | ({"methods": [row.to_dict() for row in rows]} if "methods" in listing else {}))
    for position, (each, entries) in enumerate(listing.items()):
        if position:
            output.say()
        titles = [each, *(key for key in entries[0] if key != "name")]
        output.table(titles, [list(entry.values()) for entry in entries], right=["dimension"])


Models = tuple["Family", "tuple[Direction, ...]", "Alternatives | None"]


def _models(file: Path | None, base: str | None, experts: list[str]) -> Models | None:
    """The models of a search file, or those named, what gets coefficients, and a choice; only headers are read."""
    if file is None and base is None and not experts:
        return None
    from optmerge.errors import ConfigError
    from optmerge.merging.alternatives import searched_directions
    from optmerge.models.family import open_family

    if file is not None and base is None and not experts:
        from optmerge.config.load import load_config

        config = load_config(file)
        family = open_family(
            config.base,
            config.experts,
            relative_to=file.parent,
            heads=config.heads,
            vocabulary=config.vocabulary,
            allow_pickle=config.allow_pickle,
            check_values=False,
        )
        experts = list(family.experts)
        return family, *searched_directions(config.directions, experts, config.method, config.alternatives)
    if file is not None or base is None or not experts:
        raise ConfigError(
            "Dimensions are those of a search file's models, or of --base MODEL with one --expert MODEL or more; give "
            "one or the other."
        )
    named = {str(number): reference for number, reference in enumerate(experts, 1)}
    family = open_family(base, named, relative_to=Path(), check_values=False)
    return family, *searched_directions(["experts"], list(named), None, ())


def _spaces(models: Models | None) -> list[dict[str, Any]]:
    from optmerge.presets import find_preset, preset_names, preset_summary

    names = preset_names("space")
    entries: list[dict[str, Any]] = [{"name": name} for name in names]
    if models is not None:
        dimensions = _dimensions(*models, names)
        for entry in entries:
            entry["dimension"] = dimensions[entry["name"]]
    for entry in entries:
        entry["what"] = preset_summary(find_preset("space", entry["name"]))
    return sorted(entries, key=lambda entry: entry.get("dimension", 0))


def _dimensions(
    family: Family, directions: tuple[Direction, ...], alternatives: Alternatives | None, names: list[str]
) -> dict[str, int]:
    """How many variables each space has."""
    from optmerge.config.load import read_mapping
    from optmerge.config.spaces import SpaceConfig
    from optmerge.merging.deltas import Deltas
    from optmerge.presets import find_preset
    from optmerge.space.build import build_space
    from optmerge.space.choices import choosing

    roles = {name: parameter.role for name, parameter in family.parameters.items()}
    lanes = {direction.name: direction.lane for direction in directions}
    absent = Deltas(family, directions, cache=None).absent()
    found = {}
    for name in names:
        config = SpaceConfig.model_validate(read_mapping(find_preset("space", name)))
        space = build_space(config, roles, list(lanes), untouched=absent, shapes=family.parameters, lanes=lanes)
        found[name] = (space if alternatives is None else choosing(space, alternatives)).dimension
    return found


def _objectives() -> list[dict[str, Any]]:
    from optmerge.config.load import read_mapping
    from optmerge.config.objectives import LABELLED_TERMS
    from optmerge.presets import find_preset, preset_names, preset_summary

    entries = []
    for name in preset_names("objective"):
        path = find_preset("objective", name)
        preset = read_mapping(path)
        terms = [term["name"] for term in (*preset["terms"], *preset.get("select", ()))]
        labels = "yes" if LABELLED_TERMS.intersection(terms) else "no"
        entries.append({"name": name, "labels": labels, "what": preset_summary(path).removeprefix(f"{name}: ")})
    return entries


def _schedules() -> list[dict[str, Any]]:
    from optmerge.config.load import read_mapping
    from optmerge.presets import find_preset, preset_names, preset_summary

    entries = []
    for name in preset_names("schedule"):
        path = find_preset("schedule", name)
        drivers = [stage["driver"]["name"] for stage in read_mapping(path)["schedule"]]
        what = preset_summary(path).removeprefix(f"{name}: ")
        entries.append({"name": name, "drivers": ", ".join(drivers), "what": what})
    return entries


def _drivers() -> list[dict[str, Any]]:
    from optmerge.config.drivers import DRIVER_CONFIGS

    return [
        {"name": name, "what": (model.__doc__ or "").partition("\n")[0], "settings": _settings(model)}
        for name, model in DRIVER_CONFIGS.items()
    ]


def _settings(model: type[Strict]) -> str:
    defaults = {name: field.default for name, field in model.model_fields.items() if name != "name"}
    return ", ".join(f"{name}={'null' if value is None else value}" for name, value in defaults.items())


def _method_rows(file: Path | None, own: list[str]) -> list[MethodRow]:
    """Every method, and the user's own: those that are given, and those that a search file names."""
    from optmerge.config.methods_page import method_rows

    rows = method_rows()
    if file is not None:
        from optmerge.config.load import load_config
        from optmerge.runner.own_methods import absolute_methods, own_paths

        own = [*own, *own_paths(absolute_methods(load_config(file), file.parent))]
    if own:
        from optmerge.merging.methods.own import own_row

        rows += [own_row(path) for path in own]
    return rows


def _methods(rows: list[MethodRow]) -> list[dict[str, Any]]:
    """For people; `--json` has every fact of a `MethodRow`."""
    return [
        {
            "name": row.name,
            "what": row.what,
            "needs": row.listed_needs,
            "searched as": row.searchable,
            "settings (* can be tuned)": row.listed_settings(),
            "cost": row.cost,
            "paper": row.paper,
            "mergekit": row.mergekit or "-",
        }
        for row in rows
    ]
