"""Methods of the user's own in a search: their files found, and known again.

config = absolute_methods(config, root)
manifest["methods"] = method_hashes(problem.directions)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optmerge.config.alternatives import OneOfConfig
from optmerge.config.methods import CustomMethodConfig
from optmerge.own_code import absolute_path

if TYPE_CHECKING:
    from optmerge.config.schema import SearchConfig
    from optmerge.merging.recipe import Direction


def absolute_methods(config: SearchConfig, root: Path) -> SearchConfig:
    """The search with the files of its users' methods made absolute.

    Args:
        config: As the search file has it.
        root: Folder of the search file.
    """
    return renamed_methods(config, lambda path: absolute_path(path, root))


def renamed_methods(config: SearchConfig, own: Callable[[str], str]) -> SearchConfig:
    """The search with other names for its users' methods; ``own`` makes them of ``FILE.py:CLASS``."""

    def one(entry: Any) -> Any:
        if isinstance(entry, CustomMethodConfig):
            return entry.model_copy(update={"path": own(entry.path)})
        if isinstance(entry, OneOfConfig):
            return entry.model_copy(update={"methods": list(map(one, entry.methods))})
        if isinstance(entry, Mapping) and entry.get("name") == "custom":
            return {**entry, "path": own(str(entry["path"]))}
        return entry

    return config.model_copy(
        update={
            "method": one(config.method),
            "methods": None if config.methods is None else list(map(one, config.methods)),
            "directions": list(map(one, config.directions)),
            "baselines": config.baselines.model_copy(update={"methods": list(map(one, config.baselines.methods))}),
        }
    )


def own_paths(config: SearchConfig) -> list[str]:
    """``FILE.py:CLASS`` of every user's method that a search names, each once."""
    listed: list[Any] = [config.method, *(config.methods or ()), *config.directions, *config.baselines.methods]
    listed += [one for entry in config.directions if isinstance(entry, OneOfConfig) for one in entry.methods]
    paths = [
        entry.path if isinstance(entry, CustomMethodConfig) else str(entry["path"])
        for entry in listed
        if isinstance(entry, CustomMethodConfig) or (isinstance(entry, Mapping) and entry.get("name") == "custom")
    ]
    return list(dict.fromkeys(paths))


def method_hashes(directions: Sequence[Direction]) -> dict[str, str]:
    """What the deltas of users' methods depend on beside models and settings: what it is called -> hash.

    Raises:
        ConfigError: A file is not there any more.
    """
    own = [direction.config for direction in directions if isinstance(direction.config, CustomMethodConfig)]
    return {f"custom method {config.path}": config.content for config in own}
