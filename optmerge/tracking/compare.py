"""Several runs side by side: which settings differ, what each reached at which cost, and whether that is luck.

    comparison = compare_runs([Path("runs/a"), Path("runs/b")])
    print(comparison.markdown())

The first run is the reference of the paired intervals. Two runs are paired only where they scored the same report
examples: same data, same number of report examples per task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optmerge.errors import RunError
from optmerge.records import Vector
from optmerge.runner.bootstrap import paired_bootstrap
from optmerge.runner.folder import RunFolder
from optmerge.tracking.markdown import NONE, number, ranged, signed, table
from optmerge.tracking.standing import duration
from optmerge.tracking.view import RunView

_SAID_ELSEWHERE = ("output", "tracking")  # settings that cannot change a result


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run's line."""

    name: str
    status: str
    select: float | None
    mean: float | None
    interval: tuple[float, float] | None
    metric: str
    best_baseline: str | None
    evaluations: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A run minus the reference run on the same report examples; ``reason`` says why there is no interval."""

    name: str
    against: str
    metric: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    per_task: Mapping[str, tuple[float, float, float]] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare_runs` finds.

    Attributes:
        runs: One summary per run, in the given order.
        settings: Dotted setting -> its value in every run, for the settings that differ.
        pairs: Every run but the first against the first.
    """

    runs: tuple[RunSummary, ...]
    settings: Mapping[str, tuple[Any, ...]]
    pairs: tuple[Pair, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same facts as plain data."""
        return asdict(self)

    def markdown(self) -> str:
        """The same facts as Markdown tables."""
        metric = self.runs[0].metric if len({run.metric for run in self.runs}) == 1 else "metric"
        head = ["run", "state", "select objective", f"report {metric}", "best baseline", "evaluations", "time"]
        rows = [
            [
                run.name,
                run.status,
                number(run.select),
                ranged(run.mean, run.interval)
                + (f" {run.metric}" if metric == "metric" and run.mean is not None else ""),
                run.best_baseline or NONE,
                str(run.evaluations),
                duration(run.seconds),
            ]
            for run in self.runs
        ]
        parts = [table(head, rows, left=(0, 1, 4))]
        if self.settings:
            lines = [[key, *_marked(values)] for key, values in self.settings.items()]
            names = [run.name for run in self.runs]
            parts += [
                "Settings that differ, **marked** where a run has another than the first:",
                table(["", *names], lines, left=range(len(names) + 1)),
            ]
        else:
            parts.append("The runs have the same settings.")
        if self.pairs:
            lines = [[pair.name, pair.against, _told(pair)] for pair in self.pairs]
            parts += [
                "Paired bootstrap on the same report examples, 95 % intervals, in points:",
                table(["run", "minus", "difference"], lines, left=(0, 1, 2)),
            ]
        return "\n\n".join(parts) + "\n"


def compare_runs(folders: Sequence[Path], *, seed: int = 0) -> Comparison:
    """Compare runs.

    Args:
        folders: Run folders, the reference first.
        seed: Of the bootstrap.

    Raises:
        RunError: A folder holds no run, or none is given.
    """
    if not folders:
        raise RunError("There is nothing to compare: name at least one run folder.")
    views = [RunView.open(folder, vectors=False) for folder in folders]
    names = run_names(folders)
    summaries = tuple(_summary(view, name) for view, name in zip(views, names, strict=True))
    pairs = tuple(
        _pair(view, views[0], name=name, against=names[0], seed=seed)
        for view, name in zip(views[1:], names[1:], strict=True)
    )
    return Comparison(summaries, _different(views), pairs)


def _summary(view: RunView, name: str) -> RunSummary:
    row = view.search_row
    return RunSummary(
        name=name,
        status=view.status,
        select=view.best.value if view.best else None,
        mean=row.mean if row else None,
        interval=row.interval if row else None,
        metric=view.metric,
        best_baseline=view.best_baseline[0] if view.best_baseline else None,
        evaluations=view.evaluations,
        seconds=view.search_seconds,
    )


def run_names(folders: Sequence[Path]) -> list[str]:
    """Folder names, or as much of the paths as tells them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(len(parts) for parts in paths) + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(folder) for folder in folders]


def _different(views: Sequence[RunView]) -> dict[str, tuple[Any, ...]]:
    flat = [_flatten(view.settings) for view in views]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    return {
        key: tuple(settings.get(key) for settings in flat)
        for key in keys
        if key.split(".")[0] not in _SAID_ELSEWHERE and any(s.get(key) != flat[0].get(key) for s in flat)
    }


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists of mappings as dotted keys."""
    if isinstance(value, Mapping) and value:
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in items:
        flat |= _flatten(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _pair(view: RunView, reference: RunView, *, name: str, against: str, seed: int) -> Pair:
    metric = view.metric
    sides = [_scores(side) for side in (view, reference)]
    if metric != reference.metric:
        return Pair(name, against, metric, reason=f"one reports {metric}, the other {reference.metric}")
    if sides[0] is None or sides[1] is None:
        return Pair(name, against, metric, reason="one of them has no report scores per example")
    reason = _unpaired(view, reference, metric, sides[0], sides[1])
    if reason:
        return Pair(name, against, metric, reason=reason)
    ours, theirs = ({task: arrays[metric] for task, arrays in side.items()} for side in sides if side is not None)
    interval = paired_bootstrap(ours, theirs, seed=seed)
    return Pair(name, against, metric, interval.mean, interval.low, interval.high, interval.per_task)


def _scores(view: RunView) -> dict[str, dict[str, Vector]] | None:
    record = view.search_row.record if view.search_row else None
    return None if record is None else RunFolder(view.folder).load_examples(record)


def _unpaired(
    view: RunView,
    reference: RunView,
    metric: str,
    ours: Mapping[str, Mapping[str, Vector]],
    theirs: Mapping[str, Mapping[str, Vector]],
) -> str | None:
    """Why the report examples are not the same, or None."""
    if set(ours) != set(theirs):
        return "they have different tasks"
    for task in ours:
        digests = [_report_digest(side, task) for side in (view, reference)]
        if digests[0] is None or digests[0] != digests[1]:
            return f"the data of task {task} differ"
        scores = [side[task].get(metric) for side in (ours, theirs)]
        if scores[0] is None or scores[1] is None or len(scores[0]) != len(scores[1]):
            return f"the report splits of task {task} differ"
    return None


def _report_digest(view: RunView, task: str) -> str | None:
    """What tells whether two runs reported on the same examples: the hash of the report split, or of all the data."""
    known: Mapping[str, str] = view.manifest.get("report_examples") or view.manifest.get("data") or {}
    return known.get(task)


def _told(pair: Pair) -> str:
    if pair.difference is None or pair.low is None or pair.high is None:
        return f"not paired: {pair.reason}"
    return f"{signed(pair.difference)} [{signed(pair.low)}, {signed(pair.high)}]"


def _marked(values: Sequence[Any]) -> list[str]:
    """A setting's values, those that are not the first run's in bold."""
    return [_short(value) if value == values[0] else f"**{_short(value)}**" for value in values]


def _short(value: Any) -> str:
    text = NONE if value is None else str(value)
    return text if len(text) <= 48 else text[:20] + "..." + text[-25:]
