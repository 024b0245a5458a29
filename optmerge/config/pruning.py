"""A search file with fewer experts: everything that speaks of the others is taken out.

data = with_experts(read_mapping(path), ["code", "news"])
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Collection, Mapping
from typing import Any


def with_experts(data: Mapping[str, Any], kept: Collection[str]) -> dict[str, Any]:
    """The content of a search file with these experts only.

    Tasks of other experts go, with their weights, in stages too; so do rules of the space for directions that are no
    more, and weights of the other experts in whole methods. The tokenizer falls back to the base's. Everything else is
    as it was, presets by name included.

    Args:
        data: What the file holds, as it is written.
        kept: Names of experts that stay.
    """
    made = copy.deepcopy(dict(data))
    gone = [name for name in made["experts"] if name not in kept]
    made["experts"] = {name: model for name, model in made["experts"].items() if name in kept}
    left_out = [task for task, spec in made["tasks"].items() if spec["expert"] in gone]
    made["tasks"] = {task: spec for task, spec in made["tasks"].items() if task not in left_out}
    if made.get("tokenizer") in gone:
        del made["tokenizer"]
    others = [d["name"] if isinstance(d, dict) else d for d in made.get("directions") or () if d != "experts"]
    space = made.get("space")
    if isinstance(space, dict) and isinstance(space.get("rules"), list):
        space["rules"] = [
            rule for rule in space["rules"] if not _only_of(gone, [*kept, *others], rule.get("direction", "*"))
        ]
    stages = made.get("schedule")
    for part in (made, *(stages if isinstance(stages, list) else ())):
        _without(left_out, part.get("objective") if isinstance(part, dict) else None, "task_weights")
    baselines = made.get("baselines")
    for methods in (made.get("directions"), baselines.get("methods") if isinstance(baselines, dict) else None):
        for method in methods if isinstance(methods, list) else ():
            _without(gone, method, "weights")
    return made


def _only_of(gone: Collection[str], kept: Collection[str], glob: str) -> bool:
    """Whether a glob over directions matches some that go, and none of those that stay."""
    return any(fnmatch.fnmatchcase(name, glob) for name in gone) and not any(
        fnmatch.fnmatchcase(name, glob) for name in kept
    )


def _without(names: Collection[str], part: Any, key: str) -> None:
    """Take names out of the mapping that ``part`` has under ``key``, where it has one."""
    if isinstance(part, dict) and isinstance(part.get(key), dict):
        part[key] = {name: value for name, value in part[key].items() if name not in names}
