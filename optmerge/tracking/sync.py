"""Sends a whole run to Weights & Biases from its trajectory, whenever and wherever it was made.

    sent = sync_run(Path("runs/first"), project="merging", mode="online")
    print(sent.url)

The W&B run has the id in the run's ``wandb.json``: what the project has of it already is completed, and nothing is
there twice. In another project it is a run of its own.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optmerge.config.schema import TrackingConfig
from optmerge.errors import RunError, UserError
from optmerge.tracking.page import PAGE
from optmerge.tracking.report import write_report
from optmerge.tracking.tracker_sink import TrackerSink
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_tracker import WandbTracker


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent where.

    Attributes:
        id: Of the W&B run.
        url: Of its page; None offline.
        folder: What `wandb sync` sends, offline; None online.
        records: Evaluations that the W&B run has now.
        sent: Those of them that it had not before.
    """

    id: str
    project: str
    url: str | None
    folder: Path | None
    records: int
    sent: int


def sync_run(
    run: Path,
    *,
    project: str | None = None,
    entity: str | None = None,
    mode: Literal["online", "offline"] = "online",
) -> Sent:
    """Send a run.

    Args:
        run: Its folder.
        project: None is the one of its search file.
        entity: Likewise.
        mode: Offline makes a new segment below ``wandb/`` of the run's folder.

    Raises:
        RunError: There is no run, it is going on, or W&B refuses.
        UserError: Online without an API key.
    """
    view = RunView.open(run)
    if view.status in ("started", "running"):
        raise RunError(f"{run} is going on, and its own search may be sending it. Sync it when it has ended.")
    changes: dict[str, Any] = {"wandb": mode, "to": "wandb"}
    changes |= {key: value for key, value in (("project", project), ("entity", entity)) if value is not None}
    settings = {**(view.settings.get("tracking") or {}), **changes}
    tracker = WandbTracker(TrackingConfig.model_validate(settings))
    if not (run / PAGE).is_file():
        write_report(run)
    sink = TrackerSink(tracker)
    try:
        sink.start(run)
        sink.finish(run, view.reason)
    except UserError:
        raise
    except Exception as problem:
        with contextlib.suppress(Exception):
            sink.abandon()
        what = " ".join(str(problem).split()) or type(problem).__name__
        raise RunError(
            f"W&B did not take {run}: {what}. The run itself is untouched; sync it again when W&B can be reached, or "
            "with --mode offline."
        ) from problem
    return Sent(tracker.id, tracker.project, tracker.url, tracker.segment, len(view.records), sink.sent)
