"""Opens optuna-dashboard on a run's journal mirror.

    serve_dashboard(Path("runs/first"), port=8080)        # until Ctrl-C

The dashboard reads ``optuna.journal`` alone, so it may be open while the search goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from optmerge.errors import MissingExtraError, RunError
from optmerge.tracking.optuna_mirror import FILE, OptunaMirror
from optmerge.tracking.view import RunView


def serve_dashboard(
    run: Path, *, host: str = "localhost", port: int = 8080, listening: Callable[[], None] = lambda: None
) -> None:
    """Serve the dashboard until the user stops it.

    Args:
        run: The run's folder; a mirror that is not there is made from its trajectory.
        host: Who may look: localhost is this machine alone.
        port: Where.
        listening: Called when everything is ready, before the server starts.

    Raises:
        MissingExtraError: optuna-dashboard is not installed.
        RunError: There is no run, or the port is taken.
    """
    view = RunView.open(run, vectors=False)
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise MissingExtraError(
            "`optmerge dashboard` needs optuna-dashboard, which is not installed. Run: pip install "
            "'optmerge[dashboard]'"
        ) from None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not (run / FILE).is_file():
        mirror = OptunaMirror()
        mirror.start(run)
        mirror.finish(run, view.reason)
    listening()
    try:
        run_server(JournalStorage(JournalFileBackend(str(run / FILE))), host=host, port=port)
    except OSError as problem:
        raise RunError(f"The dashboard cannot listen at {host}:{port} ({problem}). Take another --port.") from None
