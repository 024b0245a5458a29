"""All finished runs below a folder, the best first; runs on other models or data are in tables of their own.

    ranking = rank_runs(Path("runs"))
    print(ranking.markdown())

Numbers of one group were measured on the same report examples of the same models, so they can be compared. (The table
that `optmerge baseline` measures is `optmerge.runner.leaderboard`.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optmerge.errors import OptmergeError, RunError
from optmerge.tracking.markdown import number, ranged, table
from optmerge.tracking.standing import duration
from optmerge.tracking.view import RunView

_HEAD = ["run", "models", "driver", "space", "evaluations", "select", "report", "time"]


@dataclass(frozen=True, slots=True)
class RankedRun:
    """A finished run.

    Attributes:
        name: Its folder, relative to the one that was looked through.
        objective: What was minimised on select: values of another objective cannot be compared.
        select: Objective of its best on select; lower is better.
        mean: Mean over tasks of the group's metric on report; higher is better.
        interval: The ends of its 95 % interval over report examples.
        seconds: What the search took, baselines not counted.
    """

    name: str
    driver: str
    space: str
    objective: str
    evaluations: int
    select: float | None
    mean: float | None
    interval: tuple[float, float] | None
    seconds: float


@dataclass(frozen=True, slots=True)
class RunGroup:
    """Runs on the same models and report examples, by the same metric; the best mean on report first.

    Attributes:
        key: A short hash of models, data and report examples.
        models: The base and the experts, by their references.
    """

    key: str
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    metric: str
    runs: tuple[RankedRun, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """What `rank_runs` finds.

    Attributes:
        groups: Those with the most runs first.
        left_out: Folder -> why it is in no group: damaged, or not finished.
    """

    folder: str
    groups: tuple[RunGroup, ...]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same facts as plain data."""
        return asdict(self)

    def markdown(self) -> str:
        """A table for each group, and what was left out."""
        parts: list[str] = []
        for group in self.groups:
            rows = [
                [
                    run.name,
                    _short(group.models),
                    run.driver,
                    run.space,
                    str(run.evaluations),
                    number(run.select),
                    ranged(run.mean, run.interval),
                    duration(run.seconds),
                ]
                for run in group.runs
            ]
            parts.append(f"Tasks {', '.join(group.tasks)}; report in {group.metric}:")
            parts.append(table(_HEAD, rows, left=(0, 1, 2, 3)))
            objectives = list(dict.fromkeys(run.objective for run in group.runs))
            if len(objectives) > 1:
                parts.append(f"Select values are of {len(objectives)} objectives: {'; '.join(objectives)}.")
        if len(self.groups) > 1:
            parts.append("Runs on other models or report examples are in tables of their own: they cannot be compared.")
        if self.left_out:
            parts.append("Left out:\n" + "\n".join(f"- {name}: {why}" for name, why in self.left_out.items()))
        return "\n\n".join(parts)


def rank_runs(folder: Path) -> Ranking:
    """Look through a folder and all below it.

    Raises:
        RunError: There is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder. Name the one that your runs are in: optmerge leaderboard runs")
    groups: dict[str, tuple[RunView, list[RankedRun]]] = {}  # of its first run, and all of its runs
    left_out: dict[str, str] = {}
    for path in run_folders(folder):
        name = path.relative_to(folder).as_posix() if path != folder else path.resolve().name
        try:
            view = RunView.open(path, vectors=False)
            if view.status != "finished":
                left_out[name] = f"{view.status}{f' ({view.reason})' if view.reason else ''}"
                continue
            key, ranked = _key(view), _ranked(view, name)
            groups.setdefault(key, (view, []))[1].append(ranked)
        except OptmergeError as problem:
            left_out[name] = str(problem)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as problem:  # JSON of another shape
            left_out[name] = f"its files are damaged ({type(problem).__name__}: {problem})"
    if not groups and not left_out:
        raise RunError(f"There is no run in {folder}: no folder below it has a search.yaml and a trajectory.jsonl.")
    made = [
        RunGroup(
            key=key,
            models=_models(view),
            tasks=tuple(view.settings.get("tasks") or ()),
            metric=view.metric,
            runs=tuple(sorted(runs, key=_standing)),
        )
        for key, (view, runs) in groups.items()
    ]
    return Ranking(str(folder), tuple(sorted(made, key=lambda group: (-len(group.runs), group.key))), left_out)


def run_folders(folder: Path) -> Iterator[Path]:
    """Folders of runs in ``folder`` and below, in the order of their names; a run is not looked through for others."""
    for path, folders, files in os.walk(folder):
        if "search.yaml" in files and {"trajectory.jsonl", "result.json", "manifest.json"} & set(files):
            folders.clear()
            yield Path(path)
        else:
            folders.sort()


def _ranked(view: RunView, name: str) -> RankedRun:
    row = view.search_row
    stages = [
        stage.get("granularity") or (view.settings.get("space") or {}).get("granularity") for stage in view.stages
    ]
    return RankedRun(
        name=name,
        driver=view.driver,
        space=", then ".join(dict.fromkeys(str(stage) for stage in stages if stage)),
        objective=_objective(view),
        evaluations=view.evaluations,
        select=view.result["best"]["select"],
        mean=row.mean if row else None,
        interval=row.interval if row else None,
        seconds=float(view.result["seconds"]),
    )


def _objective(view: RunView) -> str:
    """The terms that select judges by, as the last stage has them."""
    objective = view.objectives[-1]
    terms = objective.get("select") or objective.get("terms") or []
    return " + ".join(f"{term.get('weight', 1):g} {term['name']}" for term in terms)


def _key(view: RunView) -> str:
    """A hash of all that must be the same for two scores on report to be comparable."""
    models = view.manifest["models"]
    same = {
        "models": {name: model["sha256"] for name, model in models.items()},
        "data": view.manifest["data"],
        "report": view.manifest.get("report_examples") or {t: s["report"] for t, s in view.manifest["splits"].items()},
        "metric": view.metric,
    }
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]


def _models(view: RunView) -> tuple[str, ...]:
    return tuple(str(model.get("reference")) for model in view.manifest["models"].values())


def _short(models: tuple[str, ...]) -> str:
    """The base's name and how many experts there are."""
    base, *experts = models
    return f"{Path(base).name} + {len(experts)}"


def _standing(run: RankedRun) -> tuple[bool, float, str]:
    return run.mean is None, -(run.mean or 0.0), run.name
