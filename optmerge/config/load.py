"""Search file -> `SearchConfig`: default < preset < file < ``--set``, and every mistake told at once.

    config = load_config(Path("search.yaml"), overrides=["driver.lr=0.02"])
    text = dump_config(config)           # the resolved file; loading it gives the same config

``space`` and ``objective`` may be a preset's name, a path relative to the search file, a mapping, or a mapping with
``preset: NAME`` whose other keys change that preset. ``schedule`` may be a name, a path, or the list of its stages, and
``methods`` the name of a method, or a path to a file that says ``method``, ``methods`` or ``directions``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from optmerge.config.agreement import name_problems
from optmerge.config.alternatives import custom_grids
from optmerge.config.messages import explain, shown
from optmerge.config.overrides import apply_override, parse_override
from optmerge.config.reading import read_yaml
from optmerge.config.schema import VERSION, SearchConfig
from optmerge.errors import ConfigError, near_matches
from optmerge.presets import PresetKind, find_preset

_NAMED = ("driver", "method")  # fields where a string stands for {name: ...}
_PRESETS: tuple[PresetKind, ...] = ("space", "objective", "schedule")


def load_config(path: Path, *, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read and check a search file.

    Args:
        path: The YAML file; presets named by a path are relative to its folder.
        overrides: ``dotted.key=value`` changes, applied in order.

    Raises:
        ConfigError: The file is missing or not YAML, or anything in it is wrong; the message lists all of it.
    """
    return build_config(read_mapping(path), root=path.parent, source=str(path), overrides=overrides)


def build_config(
    data: Mapping[str, Any], *, root: Path, source: str = "the search", overrides: Sequence[str] = ()
) -> SearchConfig:
    """Check a search given as plain data.

    Args:
        data: What the search file would hold.
        root: Folder that paths of presets are relative to.
        source: What to call it in errors.
        overrides: ``dotted.key=value`` changes, applied in order.

    Raises:
        ConfigError: Anything is wrong; the message lists all of it.
    """
    content: dict[str, Any] = copy.deepcopy(dict(data))
    _check_version(content.get("version", VERSION), source)
    problems: list[str] = []
    resolver = _Presets(root)
    for text in overrides:
        try:
            apply_override(content, parse_override(text), resolver.expand)
        except ConfigError as error:
            problems.append(str(error))
    for kind in _PRESETS:
        if kind in content:
            try:
                content[kind] = resolver.resolve(kind, content[kind])
            except ConfigError as error:
                problems.append(str(error))
                content.pop(kind)
                resolver.broken.add(kind)
    try:
        content = custom_grids(resolver.methods(content), root)
    except ConfigError as error:
        problems.append(str(error))
    try:
        config = SearchConfig.model_validate(content)
    except ValidationError as error:
        told = explain(error, SearchConfig, content)
        told = [line for line in told if not any(line.startswith(f"{kind}: missing") for kind in resolver.broken)]
        problems += told
        # Fields that are wrong keep pydantic from comparing names; they are compared all the same.
        problems += name_problems(content)
    if problems:
        raise ConfigError(_report(source, list(dict.fromkeys(problems))))
    return config


def dump_config(config: SearchConfig) -> str:
    """The resolved search file as YAML, every default written out."""
    unused = None if config.schedule is None else {"driver"}
    return yaml.safe_dump(
        config.model_dump(mode="json", exclude=unused), sort_keys=False, allow_unicode=True, width=120
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """The plain data of a YAML file that holds a mapping.

    Raises:
        ConfigError: The file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = [found.name for found in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = near_matches(path.name, there)
        hint = f" Did you mean {path.parent / near[0]}?" if near else " `optmerge init` writes one to start from."
        raise ConfigError(f"There is no file {path}.{hint}") from None
    except IsADirectoryError:
        raise ConfigError(
            f"{path} is a folder; expected a YAML file. A run is continued with `optmerge resume`."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8 (byte {error.start}); expected a YAML file.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    data = read_yaml(text, source=str(path))
    if not isinstance(data, dict):
        what = "is empty" if data is None else f"holds {shown(data)}"
        raise ConfigError(f"{path} {what}; expected a mapping of keys to values.")
    return data


class _Presets:
    """Turns the short forms of a search file into what they stand for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.broken: set[str] = set()

    def expand(self, path: tuple[str, ...], value: Any) -> Any:
        """What an override that goes into ``path`` finds there."""
        if path[0] == "schedule" and len(path) == 3:  # a stage's own keys are those of the file
            return self.expand(path[2:], value)
        key = path[0]
        if len(path) == 1 and key in _PRESETS:
            return self.resolve(key, {} if value is None else value)
        if len(path) == 1 and key in _NAMED and (value is None or isinstance(value, str)):
            return {"name": value or SearchConfig.model_fields[key].default.name}
        if path == ("objective", "aggregate") and isinstance(value, str):
            return {"name": value}
        if len(path) == 2 and key == "directions" and isinstance(value, str) and value != "experts":
            return {"name": value}
        return {} if value is None else value

    def resolve(self, kind: PresetKind, value: Any) -> Any:
        """The mapping that a preset's name, a path, or a mapping with ``preset`` stands for.

        Raises:
            ConfigError: There is no such preset, or its file is wrong.
        """
        if kind == "schedule":
            return self._schedule(value)
        if isinstance(value, str):
            return read_mapping(find_preset(kind, value, relative_to=self.root))
        if isinstance(value, Mapping) and "preset" in value:
            name = value["preset"]
            if not isinstance(name, str):
                raise ConfigError(f"{kind}.preset is {shown(name)}; expected a name or a path.")
            changes = {key: each for key, each in value.items() if key != "preset"}
            return read_mapping(find_preset(kind, name, relative_to=self.root)) | changes
        return value

    def methods(self, content: dict[str, Any]) -> dict[str, Any]:
        """The search with what ``methods: NAME`` stands for: a method's parts or delta, and a choice of its settings.

        Raises:
            ConfigError: There is no such preset, or the file says itself what the preset says.
        """
        name = content.get("methods")
        if not isinstance(name, str):
            return content
        found = read_mapping(find_preset("methods", name, relative_to=self.root))
        taken = [key for key in found if key in content and key != "methods"]
        if taken:
            raise ConfigError(
                f"methods is {name}, which says what {taken[0]} is, and the file says it too. Take {taken[0]} out "
                f"(--set takes no key out), or write what you want in its place: {taken[0]}: {shown(found[taken[0]])}."
            )
        return {key: value for key, value in content.items() if key != "methods"} | found

    def _schedule(self, value: Any) -> Any:
        """The list of stages that a schedule's name or path stands for, their objectives resolved."""
        if isinstance(value, str):
            path = find_preset("schedule", value, relative_to=self.root)
            content = read_mapping(path)
            if list(content) != ["schedule"]:
                raise ConfigError(f"{path} holds {', '.join(map(str, content))}; expected one key: schedule.")
            value = content["schedule"]
        if not isinstance(value, list):
            return value
        return [
            {**stage, "objective": self.resolve("objective", stage["objective"])}
            if isinstance(stage, Mapping) and "objective" in stage
            else stage
            for stage in value
        ]


def _check_version(version: object, source: str) -> None:
    if isinstance(version, int) and version > VERSION:
        raise ConfigError(
            f"{source} says version {version}, and this optmerge reads up to version {VERSION}. Install a newer one "
            "(pip install --upgrade optmerge), or write the file anew with `optmerge init`."
        )


def _report(source: str, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    listed = "\n".join(f"  {problem}" for problem in problems)
    return f"{source} has {len(problems)} problems:\n{listed}"
