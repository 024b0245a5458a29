"""The report of a run: report.md with its pictures, and report.html with all of it inside.

The answer first, then the evidence, then how to go on.

    write_report(Path("runs/first"))

It works at any time: on a run that is going on, was interrupted or has failed it says so, and shows what there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optmerge.atomic import atomic_write
from optmerge.config.objectives import LABELLED_TERMS
from optmerge.records import Record
from optmerge.runner.alarms import raised_alarms
from optmerge.tracking import explain_page
from optmerge.tracking.evidence_plots import results_figure, signals_figure
from optmerge.tracking.front import hypervolume_curve, open_front
from optmerge.tracking.front_plots import front_figure, hypervolume_figure
from optmerge.tracking.markdown import number, numbers, ranged, signed, table
from optmerge.tracking.page import PAGE, render_page
from optmerge.tracking.plots import heat_map_figure, save_figure, trajectory_figure
from optmerge.tracking.signals import curves
from optmerge.tracking.stages import stage_section
from optmerge.tracking.standing import duration
from optmerge.tracking.verdict import answer
from optmerge.tracking.view import Row, RunView

TRAJECTORY, COEFFICIENTS, RESULTS, SIGNALS = "trajectory.png", "coefficients.png", "results.png", "signals.png"
FRONT, HYPERVOLUME = "front.png", "hypervolume.png"
EXPLANATION = f"{explain_page.FOLDER}/{explain_page.PAGE}"
_MOST_ERRORS = 3


def write_report(folder: Path) -> Path:
    """Write report.md, its pictures and report.html into the run folder, and give the path of report.md.

    Raises:
        RunError: There is no run, one of its files is damaged, or the disk refuses.
    """
    view = RunView.open(folder)
    pictures: list[str] = []
    if view.records:
        save_figure(trajectory_figure(view), folder / TRAJECTORY)
        pictures.append(TRAJECTORY)
    if any(row.interval is not None for row in view.rows):
        save_figure(results_figure(view), folder / RESULTS)
        pictures.append(RESULTS)
    if curves(view):
        save_figure(signals_figure(view), folder / SIGNALS)
        pictures.append(SIGNALS)
    if view.coefficients is not None:
        save_figure(heat_map_figure(view.coefficients), folder / COEFFICIENTS)
        pictures.append(COEFFICIENTS)
    front, curve = open_front(view), hypervolume_curve(view)
    if front is not None:
        save_figure(front_figure(front), folder / FRONT)
        pictures.append(FRONT)
    if curve is not None:
        save_figure(hypervolume_figure(curve), folder / HYPERVOLUME)
        pictures.append(HYPERVOLUME)
    path = folder / "report.md"
    text = render_report(view, pictures=pictures)
    atomic_write(path, text)
    atomic_write(folder / PAGE, render_page(text, title=view.name, folder=folder))
    return path


class ReportSink:
    """Writes the report when a run ends."""

    label = "the report"

    def start(self, run: Path) -> None:
        """Nothing: there is nothing to report yet."""

    def record(self, record: Record) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Nothing."""

    def finish(self, run: Path, reason: str) -> None:
        """Write the report."""
        write_report(run)


def render_report(view: RunView, *, pictures: Sequence[str] = ()) -> str:
    """The text of report.md."""
    sections = [
        [f"# {view.name}", *_alarms(view), answer(view)],
        _results(view, pictures),
        _per_task(view),
        _comparisons(view),
        _finalists(view),
        _pictures(view, pictures),
        _front(view, pictures),
        stage_section(view),
        _searched(view),
        _data(view),
        _cost(view),
        _going_on(view),
    ]
    return "\n\n".join(part for section in sections for part in section if part) + "\n"


def _results(view: RunView, pictures: Sequence[str]) -> list[str]:
    if not view.rows:
        return []
    rows = sorted(view.rows, key=lambda row: (row.kind == "search", _height(row)))
    lines = [
        [
            f"**{row.name}**" if row.kind == "search" else row.name,
            number(row.select),
            ranged(row.mean, row.interval),
            "" if row.evaluations is None else str(row.evaluations),
            "" if row.seconds is None else duration(row.seconds),
            _marks(row, view),
        ]
        for row in rows
    ]
    head = ["", "select objective", f"report {view.metric}", "evaluations", "time", ""]
    note = (
        f"The objective is minimised and {view.metric} is better when higher, both are means over tasks. "
        "*chosen*: the best of its family on the select split, so it could have been picked without looking at the "
        "report split. *oracle*: the best of its family on the report split, which nobody could have known. "
        "In brackets: 95 % intervals over report examples (percentile bootstrap, stratified by task)."
    )
    picture = f"![Report scores with their intervals]({RESULTS})" if RESULTS in pictures else ""
    return ["## Results", table(head, lines, left=(0, 5)), note, picture]


def _marks(row: Row, view: RunView) -> str:
    several = sum(other.family == row.family for other in view.rows) > 1
    marks = [word for word, on in (("chosen", row.chosen), ("oracle", row.oracle)) if on and several]
    return ", ".join(marks)


def _height(row: Row) -> float:
    return row.mean if row.mean is not None else float("-inf")


def _per_task(view: RunView) -> list[str]:
    rows = [row for row in view.rows if row.report and (row.kind == "search" or row.chosen or row.family == "expert")]
    if not rows:
        return []
    tasks = list(view.settings.get("tasks") or rows[0].report)
    lines = [
        [
            f"**{row.name}**" if row.kind == "search" else row.name,
            *(_of_task(row, task, view.metric) for task in tasks),
            ranged(row.mean, row.interval),
        ]
        for row in sorted(rows, key=lambda row: (row.kind == "search", row.family != "expert", _height(row)))
    ]
    return [f"## {view.metric.capitalize()} per task, report split", table(["", *tasks, "mean"], lines, left=(0,))]


def _of_task(row: Row, task: str, metric: str) -> str:
    ends = row.per_task.get(task)
    return ranged(row.report.get(task, {}).get(metric), None if ends is None else (ends[1], ends[2]))


def _alarms(view: RunView) -> list[str]:
    """What went wrong, before anything else."""
    lines = []
    for alarm in raised_alarms(view.records):
        times = f", {alarm.times} times" if alarm.times > 1 else ""
        lines.append(
            f"- **ALARM, {alarm.kind}** (first after {alarm.evaluations} evaluations{times}): {alarm.sentence}."
        )
    return ["\n".join(lines)] if lines else []


def _finalists(view: RunView) -> list[str]:
    if len(view.finalists) < 2:
        return []
    lines = [
        [
            str(entry["rank"]),
            str(entry["iterate"]),
            number(entry["select"]),
            _lead(entry.get("lead")),
            ranged(entry["mean"], (entry["interval"]["low"], entry["interval"]["high"])),
            _interval(**entry["behind"]) if "behind" in entry else "",
        ]
        for entry in view.finalists
    ]
    head = ["rank", "record", "select objective", "behind on select", f"report {view.metric}", "first minus this"]
    note = (
        "The best distinct iterates on select, which alone chooses: the first is the result, whatever report says. "
        "Both differences have 95 % intervals over the same examples; one that holds zero decides nothing."
    )
    return ["## The best iterates on select", table(head, lines), note]


def _lead(lead: Mapping[str, float] | None) -> str:
    if lead is None:
        return ""
    difference, low, high = numbers(lead["difference"], lead["low"], lead["high"])
    return f"{difference} [{low}, {high}]"


def _comparisons(view: RunView) -> list[str]:
    entries = view.result.get("comparison") or []
    if not entries:
        return []
    tasks = list(entries[0].get("per_task") or {})
    lines = [
        [entry["against"], _interval(entry["difference"], entry["low"], entry["high"])]
        + [_interval(*entry["per_task"][task]) for task in tasks]
        for entry in entries
    ]
    level = f"{100 * entries[0].get('level', 0.95):g} %"
    note = (
        f"Paired bootstrap over the report examples, stratified by task, {level} percentile intervals in points "
        f"of {view.metric}. An interval that holds zero decides nothing."
    )
    head = [f"{entries[0]['name']} minus", "mean", *tasks]
    return ["## The search against each baseline that could have been chosen", table(head, lines, left=(0,)), note]


def _interval(difference: float, low: float, high: float) -> str:
    return f"{signed(difference)} [{signed(low)}, {signed(high)}]"


def _pictures(view: RunView, pictures: Sequence[str]) -> list[str]:
    parts: list[str] = []
    if TRAJECTORY in pictures:
        parts += ["## Trajectory", f"![Fit and select objective against evaluations, with the baselines]({TRAJECTORY})"]
    if SIGNALS in pictures:
        parts += ["## Signals on select", f"![What the collapse alarm looks at, with its thresholds]({SIGNALS})"]
        parts.append("One line per task. Beyond the dashed line is what the collapse alarm looks for.")
    if COEFFICIENTS in pictures:
        title = "Best coefficients" if view.status == "finished" else "Best coefficients so far"
        parts += [f"## {title}", f"![Coefficients by tensor group and direction]({COEFFICIENTS})"]
        where = " `recipe.yaml` has the numbers." if view.recipe is not None else ""
        parts.append(
            "A row per tensor group in the order of depth, lines between layers; a column per direction. White is 0, "
            f"nothing of the direction.{where}"
        )
    if (view.folder / EXPLANATION).is_file():
        parts.append(f"[What it has learnt]({EXPLANATION}): who relies on whom, what could be dropped, sensitivity.")
    return parts


def _front(view: RunView, pictures: Sequence[str]) -> list[str]:
    front = open_front(view)
    if front is None or FRONT not in pictures:
        return []
    parts = ["## The front", front.markdown().strip(), f"![The merges of the front, task by task]({FRONT})"]
    if HYPERVOLUME in pictures:
        parts += [
            "Hypervolume is the share of the space between the base and the best value of each task that the "
            f"candidates' values on {front.split} dominate; it stays at zero until a merge is better than the base on "
            "every task.",
            f"![Hypervolume against evaluations]({HYPERVOLUME})",
        ]
    if front.final:
        weights = ",".join(f"{task}={len(front.tasks) - place}" for place, task in enumerate(front.tasks))
        parts.append(f"`optmerge export RUN --weights {weights}` takes the one with the lowest weighted sum on select.")
    return parts


def _searched(view: RunView) -> list[str]:
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


def _data(view: RunView) -> list[str]:
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


def _cost(view: RunView) -> list[str]:
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


def _going_on(view: RunView) -> list[str]:
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
