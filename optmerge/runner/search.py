"""A whole search: open, teach, score baselines, loop, report. `resume` takes the same way over the recorded part.

run = search(config, root=Path("."))
run.recipe.save(Path("best.yaml"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError, RunFailed, RunInterrupted
from optmerge.merging.recipe import Recipe
from optmerge.records import Progress, Sink, Trajectory
from optmerge.runner.alarms import Alarms
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.folder import RunFolder
from optmerge.runner.journal import Journal
from optmerge.runner.manifest import as_begun, check_manifest, make_manifest
from optmerge.runner.packing import check_packing
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.reproduce import outcome_of
from optmerge.runner.session import Session, Stop
from optmerge.runner.shared_study import check_study
from optmerge.runner.teachers import Teachers
from optmerge.runner.workers import check_workers


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its folder, the best recipe, and the content of result.json."""

    folder: Path
    recipe: Recipe | None
    result: dict[str, Any]


def search(
    config: SearchConfig,
    *,
    root: Path,
    sinks: Sequence[Sink] = (),
    stop: Stop = lambda: None,
    like: Mapping[str, Any] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> Run:
    """Run a search from its start.

    Args:
        config: What to search; relative paths are relative to ``root``.
        root: Folder of the search file.
        sinks: Views that are fed while it runs.
        stop: Asked before every evaluation; a reason interrupts the run, which can be resumed.
        like: The manifest of a run whose arithmetic this one shall have.
        check: Told what the run is made of before anything is written; may refuse it.

    Raises:
        UserError: Something that the user can mend, found before any evaluation, or by the first that shows it.
        RunInterrupted: ``stop`` gave a reason.
        RunFailed: No candidate could be evaluated any more.
    """
    config = absolute_references(config, root)
    RunFolder.require_free(root / config.output)
    for stage in config.stages:
        check_study(stage.driver)
    begun = like or {}
    # A user's mistake is found before anything is written.
    problem = open_problem(config, progress=_fan_out(sinks), **as_begun(begun))
    check_workers(problem, config)
    if check is not None:
        check(make_manifest(problem))
    folder = RunFolder.create(root / config.output, config)
    with folder.locked():
        return _run(folder, problem, sinks, stop)


def resume(path: Path, *, sinks: Sequence[Sink] = (), stop: Stop = lambda: None) -> Run:
    """Continue a run from wherever it was interrupted; a finished one is returned as it is.

    Raises:
        RunError: There is no run, or its models, data or machine changed since.
    """
    folder = RunFolder.open(path)
    with folder.locked():
        result = folder.read_json("result.json")
        if result is not None and result["status"] == "finished":
            return Run(path, Recipe.load(path / "recipe.yaml"), result)
        begun = folder.read_json("manifest.json") or {}
        config = folder.config()
        for stage in config.stages:
            check_study(stage.driver)
        problem = open_problem(config, progress=_fan_out(sinks), **as_begun(begun))
        check_workers(problem, config)
        return _run(folder, problem, sinks, stop)


def _fan_out(sinks: Sequence[Sink]) -> Progress:
    def progress(stage: str, done: int, total: int | None) -> None:
        for sink in sinks:
            sink.progress(stage, done, total)

    return progress


def _run(folder: RunFolder, problem: Problem, sinks: Sequence[Sink], stop: Stop) -> Run:
    progress = _fan_out(sinks)
    manifest = make_manifest(problem)
    stored = folder.read_json("manifest.json")
    if stored is None:
        folder.write_json("manifest.json", manifest)
    else:
        check_manifest(stored, manifest, folder.path)
    folder.write_json("result.json", {"status": "running", "reason": ""})
    for sink in sinks:
        sink.start(folder.path)
    check_packing(problem)
    evaluator = Evaluator(problem, Teachers.make(problem, progress))
    trajectory = Trajectory.open(folder.path)
    try:
        session = Session(
            folder, problem, evaluator, Journal(trajectory, sinks, Alarms(problem.config.alarms)), progress
        )
        result, recipe = session.execute(stop)
        folder.write_json("manifest.json", (stored or manifest) | {"outcome": asdict(outcome_of(folder.path, result))})
    except (RunInterrupted, RunFailed, ConfigError) as ended:  # a term's mistake may only show when it measures
        status = "interrupted" if isinstance(ended, RunInterrupted) else "failed"
        folder.write_json("result.json", {"status": status, "reason": str(ended)})
        for sink in sinks:
            sink.finish(folder.path, str(ended))
        raise
    finally:
        trajectory.close()
    for sink in sinks:
        sink.finish(folder.path, result["reason"])
    return Run(folder.path, recipe, result)
