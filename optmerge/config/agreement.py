"""What disagrees between the parts of a search file: names that one part uses and another does not have.

name_problems({"experts": {"math": "zoo/math"}, "tasks": {"sums": {"expert": "maths", "data": "sums.jsonl"}}})
# ["tasks.sums.expert is 'maths'; expected one of the experts (math). Did you mean 'math'?"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optmerge.config.alternatives import alternative_problems, one_of
from optmerge.config.device_map import device_map_problems
from optmerge.config.methods import METHOD_CONFIGS, STATISTICS_METHODS
from optmerge.config.stages import stage_problems
from optmerge.errors import did_you_mean


def name_problems(data: Mapping[str, Any]) -> list[str]:
    """What disagrees between the parts of a search: names that one part uses and another does not have.

    Args:
        data: A search as plain data, presets resolved; parts that are malformed are passed over.
    """
    experts, tasks = _mapping(data.get("experts")), _mapping(data.get("tasks"))
    names = [str(name) for name in experts]
    listed = ", ".join(names)
    problems = []
    for task, spec in tasks.items():
        expert = _mapping(spec).get("expert")
        if isinstance(expert, str) and experts and expert not in experts:
            near = did_you_mean(expert, names)
            problems.append(f"tasks.{task}.expert is {expert!r}; expected one of the experts ({listed}).{near}")
    if "base" in experts:
        problems.append("experts.base: the name 'base' stands for the base model; give the expert another one.")
    tokenizer = data.get("tokenizer", "base")
    if isinstance(tokenizer, str) and tokenizer not in ("base", *experts) and experts:
        near = did_you_mean(tokenizer, ["base", *names])
        problems.append(f"tokenizer is {tokenizer!r}; expected 'base' or an expert's name ({listed}).{near}")
    problems += _method_problems(data, names)
    problems += stage_problems(data)
    problems += alternative_problems(data)
    problems += device_map_problems(data)
    return problems


def _method_problems(data: Mapping[str, Any], experts: list[str]) -> list[str]:
    """What whole methods need of the experts and tasks, and do not find."""
    problems = []
    taught = {_mapping(spec).get("expert") for spec in _mapping(data.get("tasks")).values()}
    idle = [expert for expert in experts if expert not in taught]
    start = _mapping(data.get("space")).get("start")
    if idle and (_mapping(data.get("baselines")).get("closed_form") is True or start == "closed-form"):
        problems.append(
            f"{'space.start' if start == 'closed-form' else 'baselines'}: the closed form needs inputs of every "
            f"expert, and no task has the expert {' or '.join(idle)}. Add one (tasks.{idle[0]}: {{expert: {idle[0]}, "
            "data: ...}), or start elsewhere and set baselines.closed_form to false."
        )
    for where, entries in (
        ("method", [data.get("method")]),
        ("directions", data.get("directions")),
        ("directions: one-of", _mapping(one_of(data)).get("methods")),
        ("methods", data.get("methods")),
        ("baselines.methods", _mapping(data.get("baselines")).get("methods")),
    ):
        if not isinstance(entries, list):
            continue
        for entry in entries:
            name = entry if isinstance(entry, str) else _mapping(entry).get("name")
            if name in STATISTICS_METHODS and idle:
                wanted = "labelled examples" if METHOD_CONFIGS[name].facts.labels else "inputs"
                problems.append(
                    f"{where}: {name} needs {wanted} of every expert, and no task has the expert {' or '.join(idle)}. "
                    f"Add one (tasks.{idle[0]}: {{expert: {idle[0]}, data: ...}}), or take {name} out."
                )
            for expert in _mapping(_mapping(entry).get("weights")):
                if expert not in experts:
                    near = did_you_mean(str(expert), experts)
                    problems.append(
                        f"{where}: {name} has a weight for {expert!r}; expected the experts {', '.join(experts)}.{near}"
                    )
    return problems


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
