"""Searches in processes of their own that can be killed.

They are forked from a server that has imported everything, so that a kill costs no import.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _work(settings: dict[str, Any], root: str, environment: dict[str, str]) -> None:
    """Search, or resume if the run exists; in a process of its own."""
    os.environ.update(environment)  # the server has that of the test that started it, with another cache
    from optmerge.config.schema import SearchConfig
    from optmerge.runner.search import resume, search

    folder = Path(root) / settings["output"]
    if (folder / "search.yaml").exists():
        resume(folder)
    else:
        search(SearchConfig.model_validate(settings), root=Path(root))


def start(work: Callable[..., None], *arguments: Any) -> Any:
    """A process of its own; what it does must say which environment variables it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "optmerge.runner.search", "optmerge.drivers.cma_driver"])
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def start_search(settings: dict[str, Any], root: Path) -> Any:
    return start(_work, settings, str(root), dict(os.environ))


def finish_search(settings: dict[str, Any], root: Path) -> None:
    process = start_search(settings, root)
    process.join()
    assert process.exitcode == 0


def wait_for_records(folder: Path, records: int, process: Any) -> None:
    path = folder / "trajectory.jsonl"
    while process.is_alive() and (not path.exists() or path.read_bytes().count(b"\n") < records):
        time.sleep(0.001)
