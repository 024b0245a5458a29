"""The demo from end to end: zoo, searches, one table, export, reload. What is finished is not done again.

    result = run_demo(Path("runs/demo"), say=print)
    result.table["lines"], result.claims

A killed demo goes on where it was when it is started again: finished experts and searches are kept, an unfinished
search is resumed.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optmerge.atomic import atomic_write
from optmerge.demo.plan import DemoPlan, DemoSearch, demo_plan, search_settings, time_plan
from optmerge.demo.tasks import TASKS
from optmerge.demo.zoo import Zoo, make_zoo, zoo_at
from optmerge.errors import RunError, RunInterrupted

if TYPE_CHECKING:
    from optmerge.config.schema import SearchConfig
    from optmerge.demo.check import ExportCheck
    from optmerge.demo.table import DemoTable
    from optmerge.runner.search import Run

Say = Callable[[str], None]
Stop = Callable[[], str | None]

_SAID_ELSEWHERE = {"tracking", "output"}  # settings that cannot change a result


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found, as plain data.

    Attributes:
        folder: Where the runs are.
        zoo: Where the models are.
        table: The lines of the table.
        claims: What the demo should show -> whether it does.
        winner: Name of the search that is exported.
        export: The exported checkpoint and what it scores after reloading.
        seconds: Wall-clock time of this call.
    """

    folder: str
    zoo: str
    table: dict[str, Any]
    claims: dict[str, bool]
    winner: str
    export: dict[str, Any]
    seconds: float


def run_demo(
    output: Path,
    *,
    quick: bool = False,
    say: Say = lambda text: None,
    terminal: bool = True,
    stop: Stop = lambda: None,
) -> DemoResult:
    """Run the demo, or what is left of it.

    Args:
        output: Folder for the runs, the export and RESULT.md.
        quick: Two tasks and fewer steps, for continuous integration.
        say: Gets every line for people, as plain text.
        terminal: Show progress on stderr.
        stop: Asked before every evaluation; a reason ends the demo with its state saved.

    Raises:
        DataError: An archive cannot be downloaded or is not the pinned one.
        RunError: The folder holds runs of another demo, the disk refuses, or the exported checkpoint scores otherwise.
        RunInterrupted: ``stop`` gave a reason.
        RunFailed: A search failed.
    """
    from optmerge.models.cache import cache_dir

    begun = time.monotonic()
    plan = demo_plan(quick=quick)
    output = output.absolute()
    zoo = zoo_at(cache_dir(), plan.tasks, plan.recipe)
    say(_introduction(plan, zoo, output))
    with _without_bars():
        progress = _Progress(terminal, stop)
        make_zoo(cache_dir(), plan.tasks, plan.recipe, progress=progress)
        progress.close()
        for search in plan.searches:
            say(_headline(search))
            _search_or_resume(plan, search, zoo, output, terminal, stop)
        table = _table(plan, output)
        say(f"\n{table.markdown()}\n")
        for sentence in table.verdicts():
            say(f"- {sentence}")
        check = _export(plan, zoo, output, table)
    say(f"- {check.sentence}")
    seconds = time.monotonic() - begun
    told = result_markdown(plan, table, check, quick=quick, seconds=seconds, commit=_commit(output, table.winner.name))
    atomic_write(output / "RESULT.md", told)
    say(f"\nThe search files are {output}/*/search.yaml, the table is in {output / 'RESULT.md'}.")
    say(f"Next: optmerge try {output / table.winner.name}   or   optmerge report {output / table.winner.name}")
    if not check.same:
        raise RunError(
            f"{check.sentence} An export must score what its search scored; please report this with {output}/RESULT.md."
        )
    return DemoResult(
        folder=str(output),
        zoo=str(zoo.folder),
        table=asdict(table),
        claims={claim.text: claim.holds for claim in table.claims()},
        winner=table.winner.name,
        export=asdict(check) | {"same": check.same},
        seconds=seconds,
    )


def result_markdown(
    plan: DemoPlan, table: DemoTable, check: ExportCheck, *, quick: bool, seconds: float, commit: str | None = None
) -> str:
    """The demo's result for people: what was run, on what, what came out.

    Args:
        plan: The demo.
        table: Its table.
        check: What the reloaded export scores.
        quick: Whether it was the small one.
        seconds: Wall-clock time of the last call, which may have found finished parts.
        commit: Of the code, where it is known.
    """
    import torch
    import transformers

    from optmerge.tracking.standing import duration

    searched = sum(line.seconds or 0.0 for line in table.searches)
    command = "optmerge demo --quick" if quick else "optmerge demo"
    tasks = ", ".join(f"{name} ({TASKS[name].about}; {len(TASKS[name].labels)} classes)" for name in plan.tasks)
    facts = [
        f"- Command: `{command}`",
        *([f"- Commit: `{commit}`"] if commit else []),
        f"- Cost: {duration(seconds)} in all for this call, of which {duration(searched)} in the searches",
        f"- Machine: {os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} torch threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}",
        "- Base: all-MiniLM-L6-v2 (22.6 M parameters); one `BertForSequenceClassification` expert per task, "
        f"{plan.recipe.steps} steps of {plan.recipe.batch}",
        f"- Tasks: {tasks}",
    ]
    found = [f"- {sentence}" for sentence in [*table.verdicts(), check.sentence]]
    parts = ["# The demo", "\n".join(facts), "## Table", table.markdown(), "## What it says", "\n".join(found)]
    return "\n\n".join(parts) + "\n"


def _search_or_resume(plan: DemoPlan, search: DemoSearch, zoo: Zoo, output: Path, terminal: bool, stop: Stop) -> Run:
    """A search's run: made, continued, or found finished."""
    from optmerge import api
    from optmerge.config.load import build_config

    config = build_config(search_settings(plan, search, zoo, output), root=output, source=f"the demo's {search.name}")
    folder = output / search.name
    if not (folder / "search.yaml").exists():
        return api.search(config, root=output, terminal=terminal, stop=stop)
    _require_same(folder, config)
    return api.resume(folder, terminal=terminal, stop=stop)


def _require_same(folder: Path, config: SearchConfig) -> None:
    """Refuse a run that was started with other settings.

    Raises:
        RunError: They differ.
    """
    from optmerge.runner.folder import RunFolder
    from optmerge.runner.references import absolute_references

    ours = absolute_references(config, folder.parent).model_dump(mode="json")
    theirs = RunFolder.open(folder).config().model_dump(mode="json")
    differ = sorted(key for key in ours.keys() - _SAID_ELSEWHERE if ours[key] != theirs.get(key))
    if differ:
        raise RunError(
            f"{folder} holds a run with other settings than this demo's ({', '.join(differ)}). Give this demo a "
            "folder of its own with --output, or remove that run."
        )


def _table(plan: DemoPlan, output: Path) -> DemoTable:
    from optmerge.demo.table import make_table
    from optmerge.tracking.view import RunView

    return make_table(plan, {s.name: RunView.open(output / s.name, vectors=False) for s in plan.searches})


def _export(plan: DemoPlan, zoo: Zoo, output: Path, table: DemoTable) -> ExportCheck:
    """Export the winner (again, when what lies there is another merge) and score the reloaded checkpoint."""
    import numpy as np

    from optmerge import api
    from optmerge.demo.check import check_export
    from optmerge.demo.table import METRIC
    from optmerge.merging.recipe import Recipe
    from optmerge.runner.folder import RunFolder
    from optmerge.tracking.view import RunView

    run = output / table.winner.name
    merged = output / "merged"
    if (merged / "recipe.yaml").exists():
        recipes = [Recipe.load(folder / "recipe.yaml") for folder in (run, merged)]
        if not np.array_equal(recipes[0].coefficients, recipes[1].coefficients):
            shutil.rmtree(merged)
    if not merged.exists():
        api.export(run, "checkpoint", merged)
    row = RunView.open(run, vectors=False).search_row
    examples = RunFolder(run).load_examples(row.record) if row is not None and row.record is not None else None
    assert examples is not None, "a finished run has its report scores"
    return check_export(merged, plan, zoo, {task: examples[task][METRIC] for task in plan.tasks})


def _commit(output: Path, name: str) -> str | None:
    """The code's commit when a run was made, if it was made in a git checkout."""
    from optmerge.tracking.view import RunView

    state = RunView.open(output / name, vectors=False).manifest.get("git")
    return None if state is None else state["commit"] + ("" if state["clean"] else " with uncommitted changes")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the terminal, where ours are."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _introduction(plan: DemoPlan, zoo: Zoo, output: Path) -> str:
    """What will happen and how long it takes."""
    from optmerge.runner.folder import RunFolder
    from optmerge.tracking.standing import duration

    finished = {
        search.name
        for search in plan.searches
        if (RunFolder(output / search.name).read_json("result.json") or {}).get("status") == "finished"
    }
    parts = time_plan(plan, zoo, frozenset(finished))
    total = sum(seconds for _, seconds in parts)
    lines = [
        f"One merged model from {len(plan.tasks)} experts, without labels. Base: all-MiniLM-L6-v2; tasks:",
        *(f"  {name:<10} {TASKS[name].about}" for name in plan.tasks),
        f"Models and data: {zoo.folder} (131 MB are downloaded once). Runs: {output}.",
        f"Time plan, about {duration(total)} on {min(2, os.cpu_count() or 1)} idle cores:",
        *(f"  {duration(seconds):>14}  {what}" for what, seconds in parts),
    ]
    if finished:
        lines.append(f"Finished already, and not done again: {', '.join(sorted(finished))}.")
    return "\n".join(lines)


def _headline(search: DemoSearch) -> str:
    looks = f"{search.evaluations} evaluations on {search.batch} of {search.fit} unlabelled texts a task"
    return f"\n{search.title}: {looks}, {search.objective}."


class _Progress:
    """The zoo's progress on the terminal display that searches use; also where the user can stop it."""

    def __init__(self, terminal: bool, stop: Stop) -> None:
        from optmerge.tracking.terminal import TerminalSink

        self._sink = TerminalSink() if terminal else None
        self._used = False
        self._stop = stop

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if self._sink is not None:
            self._used = True
            self._sink.progress(stage, done, total)
        why = self._stop()
        if why:
            self.close(why)
            raise RunInterrupted(why)

    def close(self, reason: str = "the zoo is complete") -> None:
        """Leave the last state on the screen."""
        if self._sink is not None and self._used:
            self._used = False
            self._sink.finish(Path(), reason)
