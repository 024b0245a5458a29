"""What `optmerge search` and `optmerge resume` share: views, signals, and what is said at the end."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optmerge.cli.output import Output, duration
from optmerge.cli.signals import stop_on_interrupt
from optmerge.errors import RunInterrupted

if TYPE_CHECKING:
    from optmerge.runner.search import Run
    from optmerge.tracking.rows import Row

Stop = Callable[[], str | None]


def watch(work: Callable[[Stop], Run], folder: Path, output: Output) -> None:
    """Run ``work`` under signal handlers, then print its result.

    Args:
        work: Takes a stop flag, and makes the run.
        folder: The run's folder, named in the resume command.
        output: Where the result goes.

    Raises:
        RunInterrupted: The user stopped the search; the message has the resume command.
    """
    with interruptible(f"optmerge resume {shlex.quote(str(folder))}") as stop:
        run = work(stop)
    show_result(run, output)


def shown(*, quiet: bool, json: bool) -> bool | Literal["json"]:
    """How a verb shows progress: not at all, as JSON lines where stderr is no terminal, or for people."""
    return False if quiet else "json" if json else True


@contextmanager
def interruptible(again: str) -> Iterator[Stop]:
    """Yield a flag that Ctrl-C sets, and say how to go on when the work ends because of it.

    Args:
        again: The command that continues.

    Raises:
        RunInterrupted: The user stopped the work; the message has the command.
    """
    try:
        with stop_on_interrupt(_tell) as stop:
            yield stop
    except RunInterrupted as reason:
        raise RunInterrupted(f"The search was {reason}; its state is saved. Continue with:\n  {again}") from None
    except KeyboardInterrupt:
        raise RunInterrupted(
            f"Stopped at once; every evaluation that had ended is kept. Continue with:\n  {again}"
        ) from None


def configure_logging(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send optmerge's log to stderr: warnings by default, everything with ``verbose``, errors with ``quiet``."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("optmerge")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING)


def show_result(run: Run, output: Output) -> None:
    """Print the result table and where everything is."""
    from optmerge.tracking.verdict import answer
    from optmerge.tracking.view import RunView

    view = RunView.open(run.folder)
    output.facts({"folder": run.folder, "result": run.result})
    tasks = list(run.result.get("labels", {}))
    rows = [
        [
            row.name + _mark(row),
            *(_score(row.report.get(task, {}).get(view.metric)) for task in tasks),
            _score(row.mean),
            "-" if row.select is None else f"{row.select:.4f}",
            row.evaluations,
            "-" if row.seconds is None else duration(row.seconds),
        ]
        for row in view.rows
    ]
    head = ["", *tasks, f"mean {view.metric}", "select objective", "evaluations", "time"]
    output.table(head, rows, right=head[1:])
    output.say("\nObjective: lower is better. * best of its kind on the select split, so it could have been chosen;")
    output.say("(oracle) best of its kind on the report split, which nobody could have known.\n")
    output.say(answer(view).replace("**", "").replace("`", ""))
    output.say(f"\nStopped: {run.result.get('reason', '')}")
    output.say(f"Report:  {run.folder / 'report.html'}")
    output.say(f"Recipe:  {run.folder / 'recipe.yaml'}")
    output.say(f"Next:    optmerge export {shlex.quote(str(run.folder))} --format checkpoint --to FOLDER")


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at that moment: a live display puts itself there, to stay below the log."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def _mark(row: Row) -> str:
    if row.kind == "search":
        return ""
    return " *" if row.chosen else " (oracle)" if row.oracle else ""


def _tell(text: str) -> None:
    # A signal may arrive within a write to sys.stderr, and buffered streams cannot be entered twice.
    os.write(2, f"\n{text}\n".encode())


def _score(share: float | None) -> str:
    return "-" if share is None else f"{share:.4f}"
