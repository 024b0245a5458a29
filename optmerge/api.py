"""The Python API: what the command line does, as functions.

import optmerge

run = optmerge.search("search.yaml", overrides=["driver.lr=0.02"])
run.result["rows"], run.recipe.coefficients
folder = optmerge.merge(run.recipe, "merged")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optmerge.config.load import build_config, load_config
from optmerge.config.schema import SearchConfig
from optmerge.export.api import export, merge
from optmerge.records import Sink
from optmerge.runner import search as runner
from optmerge.runner.folder import RunFolder
from optmerge.runner.plan import Plan, make_plan
from optmerge.runner.reproduce import (
    Mismatch,
    Reproduction,
    compare,
    mismatches,
    read_manifest,
    require_same_search,
    settings_of,
)
from optmerge.runner.search import Run
from optmerge.tracking import standard_sinks

__all__ = ["Reproduced", "Run", "export", "merge", "plan", "reproduce", "resume", "search"]

Source = SearchConfig | Mapping[str, Any] | Path | str
Stop = Callable[[], str | None]


def search(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    root: Path | None = None,
    sinks: Sequence[Sink] = (),
    terminal: bool | Literal["json"] = False,
    stop: Stop = lambda: None,
) -> Run:
    """Run a search and write its report.

    Args:
        source: A search file, its content as a mapping, or a `SearchConfig`.
        overrides: ``dotted.key=value`` changes to a file or mapping.
        root: What relative paths are relative to; default the file's folder, or the working directory.
        sinks: More views, beside W&B (where the config says so) and the Optuna mirror.
        terminal: Show progress on stderr; "json": as JSON lines where stderr is no terminal.
        stop: Asked before every evaluation; a reason ends the run with its state saved.

    Raises:
        UserError: Something that the user can mend, found before any evaluation.
        RunInterrupted: ``stop`` gave a reason; `resume` continues.
        RunFailed: No candidate could be evaluated any more.
    """
    config, folder = _open(source, overrides, root)

    return runner.search(
        config, root=folder, sinks=[standard_sinks(config, terminal=terminal, stop=stop), *sinks], stop=stop
    )


def resume(
    folder: Path | str,
    *,
    sinks: Sequence[Sink] = (),
    terminal: bool | Literal["json"] = False,
    stop: Stop = lambda: None,
) -> Run:
    """Continue an interrupted run; a finished one is returned as it is. See `search` for the arguments.

    Raises:
        RunError: There is no run, or its models, data or machine changed since.
    """
    path = Path(folder)
    config = RunFolder.open(path).config()

    return runner.resume(path, sinks=[standard_sinks(config, terminal=terminal, stop=stop), *sinks], stop=stop)


@dataclass(frozen=True, eq=False)
class Reproduced:
    """A search that was run again.

    Attributes:
        run: The new run.
        mismatches: What was not as it had been, the worst first.
        comparison: What came of it beside what had; None if the first search had not finished.
    """

    run: Run
    mismatches: tuple[Mismatch, ...]
    comparison: Reproduction | None


def reproduce(
    manifest: Path | str,
    *,
    overrides: Sequence[str] = (),
    terminal: bool | Literal["json"] = False,
    stop: Stop = lambda: None,
    told: Callable[[Sequence[Mismatch]], None] = lambda found: None,
) -> Reproduced:
    """Run a search again from its manifest, and compare.

    Args:
        manifest: A manifest.json, or the folder of a run.
        overrides: Where models, data and the new run's folder are, as ``dotted.key=value``.
        terminal: Show progress on stderr; "json": as JSON lines where stderr is no terminal.
        stop: Asked before every evaluation; a reason ends the run with its state saved.
        told: Told what differs, before anything is run.

    Raises:
        UserError: What is here would be another search; nothing was run.
        RunInterrupted: ``stop`` gave a reason; `resume` continues.
    """
    path = Path(manifest)
    stored = read_manifest(path)
    beside = path if path.is_dir() else path.parent
    usual = f"output={json.dumps(str(beside.absolute()) + '-again')}"
    config = settings_of(stored, path, [usual, *overrides])
    found: list[Mismatch] = []

    def check(now: Mapping[str, Any]) -> None:
        found.extend(mismatches(stored, now))
        told(found)
        require_same_search(found)

    run = runner.search(
        config,
        root=Path.cwd(),
        sinks=[standard_sinks(config, terminal=terminal, stop=stop)],
        stop=stop,
        like=stored,
        check=check,
    )
    comparison = compare(stored, run.folder, run.result, beside=beside)
    facts = {"manifest": str(path), "mismatches": [asdict(each) for each in found]}
    RunFolder(run.folder).write_json(
        "reproduction.json", facts | {"comparison": None if comparison is None else asdict(comparison)}
    )
    return Reproduced(run, tuple(found), comparison)


def plan(source: Source, *, overrides: Sequence[str] = (), root: Path | None = None) -> Plan:
    """What a search will cost, without loading a weight. See `search` for the arguments."""
    config, folder = _open(source, overrides, root)
    return make_plan(config, root=folder)


def _open(source: Source, overrides: Sequence[str], root: Path | None) -> tuple[SearchConfig, Path]:
    if isinstance(source, SearchConfig):
        return source, root or Path.cwd()
    if isinstance(source, Mapping):
        start = root or Path.cwd()
        return build_config(source, root=start, overrides=overrides), start
    path = Path(source)
    return load_config(path, overrides=overrides), root or path.resolve().parent
