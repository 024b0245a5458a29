"""The facts of a report: what was searched, on which data, at what cost, and how to go on.

    parts = [*searched_section(view), *data_section(view), *cost_section(view), *going_on_section(view)]

Each section is a list of Markdown paragraphs; `optmerge.tracking.report` puts them behind the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optmerge.config.objectives import LABELLED_TERMS
from optmerge.tracking.markdown import table
from optmerge.tracking.standing import duration
from optmerge.tracking.view import RunView

_MOST_ERRORS = 3


def searched_section(view: RunView) -> list[str]:
    """The settings of the search, its state, and why it stopped."""
    settings = view.settings
    space = settings.get("space") or {}
    dimension = view.manifest.get("dimension")
    size = f", {dimension} variables" if dimension else ""
    facts: list[tuple[str, str]] = [
        ("space", f"{space.get('granularity', '?')}{size}, bounds {space.get('bounds')}, start {space.get('start')}"),
        ("directions", ", ".join(_names(settings.get("directions")))),
        ("experts", ", ".join(settings.get("experts") or {})),
        ("objective", " + ".join(_term(term) for term in (settings.get("objective") or {}).get("terms", []))),
        ("driver", ", then ".join(_driver(stage.get("driver") or {}) for stage in view.stages)),
        ("budget", _pairs(view.budget)),
        ("seed", str(settings.get("seed", ""))),
        ("state", view.status),
        ("stopped because", view.reason),
    ]
    if space.get("rules"):
        facts.insert(1, ("rules", "; ".join(_pairs(_told(rule)) for rule in space["rules"])))
    return ["## What was searched", "\n".join(f"- {name}: {text}" for name, text in facts if text)]


def _driver(settings: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in settings.items() if key != "name"}
    name = str(settings.get("name", "?"))
    return f"{name} ({_pairs(rest)})" if rest else name


def data_section(view: RunView) -> list[str]:
    """The tasks with their splits, and what was read of their labels."""
    tasks: Mapping[str, Any] = view.settings.get("tasks") or {}
    sizes: Mapping[str, Any] = view.manifest.get("splits") or {}
    lines = [
        [task, spec.get("expert", ""), f"`{Path(str(spec.get('data', ''))).name}`"]
        + [str(sizes.get(task, {}).get(split, "")) for split in ("fit", "select", "report")]
        for task, spec in tasks.items()
    ]
    objective: Mapping[str, Any] = view.settings.get("objective") or {}
    terms = [term["name"] for term in [*objective.get("terms", []), *(objective.get("select") or [])]]
    # The manifest knows what the settings cannot tell: what a term of the user's own reads.
    reading = dict.fromkeys([n for n in terms if n in LABELLED_TERMS] + (view.manifest.get("labelled_terms") or []))
    report = (
        "Labels of the report split are used for the tables only."
        if view.metric == "accuracy"
        else ("There are no labels for every task: the tables show agreement with each task's expert, not accuracy.")
    )
    labels = (
        f"**The search used labels**: the objective's {' and '.join(reading)} reads them."
        if reading
        else "The search used no labels."
    )
    transductive = (
        "**Transductive**: the report split's inputs (without labels) were among those that the search was fitted on."
        if view.result.get("transductive")
        else "Not transductive: the three splits share no example; fit steers the search, select chooses the iterate, "
        "report is only shown."
    )
    notes = [f"- {note}" for note in view.manifest.get("notes") or []]
    return [
        "## Data",
        table(["task", "expert", "data", "fit", "select", "report"], lines, left=(0, 1, 2)),
        f"{labels} {report} {transductive}",
        "\n".join(notes),
    ]


def cost_section(view: RunView) -> list[str]:
    """Evaluations, time by part, the machine, and what failed."""
    if not view.records:
        return []
    shares: dict[str, float] = {}
    for record in view.records:
        if record.phase == "search":
            for part, seconds in record.seconds.items():
                shares[part] = shares.get(part, 0.0) + seconds
    where = ", ".join(f"{part} {duration(seconds)}" for part, seconds in shares.items())
    hardware = view.manifest.get("hardware") or {}
    machine = hardware.get("accelerator") or hardware.get("processor") or hardware.get("machine")
    facts = [
        f"- {view.evaluations} evaluations on fit, {len(view.select)} on select, {len(view.baselines)} baselines",
        f"- {duration(view.seconds)} of work, {duration(view.search_seconds)} of it search"
        + (f" ({where})" if where else ""),
        f"- on {machine}, {hardware.get('threads', '?')} threads, device {hardware.get('device', '?')}"
        if machine
        else "",
    ]
    if view.pruned:
        facts.append(
            f"- {view.pruned} trials were pruned: dropped on a share of the examples, which is what they count; none "
            "of them was scored on select"
        )
    if view.failed:
        facts.append(f"- **{len(view.failed)} evaluations failed**: " + "; ".join(_errors(view)))
    return ["## Cost", "\n".join(fact for fact in facts if fact)]


def _errors(view: RunView) -> Iterator[str]:
    counts: dict[str, int] = {}
    for record in view.failed:
        reason = " ".join((record.error or "").split())
        counts[reason] = counts.get(reason, 0) + 1
    frequent = sorted(counts.items(), key=lambda pair: -pair[1])
    for reason, count in frequent[:_MOST_ERRORS]:
        yield f"{reason} ({count} times)" if count > 1 else reason
    if len(frequent) > _MOST_ERRORS:
        yield "..."


def going_on_section(view: RunView) -> list[str]:
    """Commands for what comes next, and how the exported model is loaded."""
    git = view.manifest.get("git") or {}
    version = (view.manifest.get("versions") or {}).get("optmerge")
    made = f"# made by optmerge {version or '?'}" + (f", commit {git['commit'][:12]}" if git.get("commit") else "")
    lines = [made]
    if view.status != "finished":
        lines.append("optmerge resume RUN                                         # go on where it stopped")
    lines.append(
        "optmerge search --reproduce RUN/manifest.json               # the same search again, compared with this one"
        if "search" in view.manifest
        else "optmerge search RUN/search.yaml --set output=runs/again     # the same search again, same seed"
    )
    if view.recipe is not None:
        lines += [
            "optmerge export RUN --format checkpoint --to merged         # a model that transformers loads",
            "optmerge export RUN --format mergekit --to merge.yaml       # the same merge for mergekit",
            "optmerge merge RUN/recipe.yaml --to merged                  # the same from the recipe alone",
            "optmerge try RUN                                            # the winner beside its experts",
            "optmerge explain RUN                                        # what each expert and layer is worth in it",
        ]
    return [
        "## How to go on",
        "RUN is the folder of this report.",
        "```sh\n" + "\n".join(lines) + "\n```",
        *_loading(view),
    ]


def _loading(view: RunView) -> list[str]:
    if view.recipe is None:
        return []
    kind = view.manifest.get("auto_class", "AutoModel")
    expert = next(iter(view.recipe.experts))
    folder = f'"merged/{expert}")  # one folder per expert' if view.recipe.heads == "own" else '"merged")'
    return [f"```python\nfrom transformers import {kind}\n\nmodel = {kind}.from_pretrained({folder}\n```"]


def _names(directions: Sequence[Any] | None) -> list[str]:
    return [
        "the experts' task vectors" if d == "experts" else str(d["name"] if isinstance(d, Mapping) else d)
        for d in directions or []
    ]


def _term(term: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in term.items() if key != "name" and value is not None}
    return f"{term['name']} ({_pairs(rest)})" if rest else str(term["name"])


def _told(rule: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in rule.items() if value is not None and value != "*"}


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
