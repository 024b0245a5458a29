"""The Python API: what the command line does, as functions.

import optmerge

run = optmerge.search("search.yaml", overrides=["driver.lr=0.02"])
run.result["rows"], run.recipe.coefficients
folder = optmerge.merge(run.recipe, "merged")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optmerge.config.load import build_config, load_config
from optmerge.config.schema import SearchConfig
from optmerge.export.api import export, merge
from optmerge.records import Sink
from optmerge.runner import search as runner
from optmerge.runner.folder import RunFolder
from optmerge.runner.plan import Plan, make_plan
from optmerge.runner.search import Run
from optmerge.tracking import standard_sinks

__all__ = ["Run", "export", "merge", "plan", "resume", "search"]

Source = SearchConfig | Mapping[str, Any] | Path | str
Stop = Callable[[], str | None]


def search(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    root: Path | None = None,
    sinks: Sequence[Sink] = (),
    terminal: bool = False,
    stop: Stop = lambda: None,
) -> Run:
    """Run a search and write its report.

    Args:
        source: A search file, its content as a mapping, or a `SearchConfig`.
        overrides: ``dotted.key=value`` changes to a file or mapping.
        root: What relative paths are relative to; default the file's folder, or the working directory.
        sinks: More views, beside W&B (where the config says so) and the Optuna mirror.
        terminal: Show progress on stderr.
        stop: Asked before every evaluation; a reason ends the run with its state saved.

    Raises:
        UserError: Something that the user can mend, found before any evaluation.
        RunInterrupted: ``stop`` gave a reason; `resume` continues.
        RunFailed: No candidate could be evaluated any more.
    """
    config, folder = _open(source, overrides, root)

    return runner.search(config, root=folder, sinks=[standard_sinks(config, terminal=terminal), *sinks], stop=stop)


def resume(folder: Path | str, *, sinks: Sequence[Sink] = (), terminal: bool = False, stop: Stop = lambda: None) -> Run:
    """Continue an interrupted run; a finished one is returned as it is. See `search` for the arguments.

    Raises:
        RunError: There is no run, or its models, data or machine changed since.
    """
    path = Path(folder)
    config = RunFolder.open(path).config()

    return runner.resume(path, sinks=[standard_sinks(config, terminal=terminal), *sinks], stop=stop)


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
