"""The report of a run: report.md with its pictures, and report.html with all of it inside.

The answer first, then the evidence, then how to go on.

    write_report(Path("runs/first"))

It works at any time: on a run that is going on, was interrupted or has failed it says so, and shows what there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from optmerge.atomic import atomic_write
from optmerge.records import Record
from optmerge.runner.alarms import raised_alarms
from optmerge.tracking import explain_page
from optmerge.tracking.evidence_plots import results_figure, signals_figure
from optmerge.tracking.front import hypervolume_curve, open_front
from optmerge.tracking.front_plots import front_figure, hypervolume_figure
from optmerge.tracking.markdown import number, numbers, ranged, signed, table
from optmerge.tracking.page import PAGE, render_page
from optmerge.tracking.plots import heat_map_figure, save_figure, trajectory_figure
from optmerge.tracking.report_facts import cost_section, data_section, going_on_section, searched_section
from optmerge.tracking.rows import Row
from optmerge.tracking.signals import curves
from optmerge.tracking.stages import stage_section
from optmerge.tracking.standing import duration
from optmerge.tracking.verdict import answer
from optmerge.tracking.view import RunView

TRAJECTORY, COEFFICIENTS, RESULTS, SIGNALS = "trajectory.png", "coefficients.png", "results.png", "signals.png"
FRONT, HYPERVOLUME = "front.png", "hypervolume.png"
EXPLANATION = f"{explain_page.FOLDER}/{explain_page.PAGE}"


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
        searched_section(view),
        data_section(view),
        cost_section(view),
        going_on_section(view),
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
