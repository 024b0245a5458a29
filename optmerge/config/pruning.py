"""A search file with fewer experts: everything that speaks of the others is taken out.

data = with_experts(read_mapping(path), ["code", "news"])
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any


def with_experts(data: Mapping[str, Any], kept: Collection[str]) -> dict[str, Any]:
    """The content of a search file with these experts only.

    Tasks of other experts go, with their weights; so do rules of the space for a direction that is no more, and the
    tokenizer falls back to the base's. Everything else is as it was, presets by name included.

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
    space = made.get("space")
    if isinstance(space, dict) and isinstance(space.get("rules"), list):
        space["rules"] = [rule for rule in space["rules"] if rule.get("direction") not in gone]
    objective = made.get("objective")
    if isinstance(objective, dict) and isinstance(objective.get("task_weights"), dict):
        objective["task_weights"] = {t: w for t, w in objective["task_weights"].items() if t not in left_out}
    return made
