"""A search as a run of Weights & Biases.

    tracker = WandbTracker(TrackingConfig(wandb="online"))
    known = tracker.open(RunView.open(folder))

The W&B id is made once and kept in ``wandb.json`` of the run folder, so a copied folder continues the same W&B run.
Online, a resumed search continues it. Offline, W&B cannot resume: a resumed search starts a new segment (a folder below
``wandb/``) which holds every evaluation again, and only the newest segment should be synced.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from optmerge.atomic import atomic_write
from optmerge.config.schema import TrackingConfig
from optmerge.errors import RunError, UserError
from optmerge.tracking.tracker import ABANDONED, EXIT_CODES, Files, Level, Table
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_facts import config, group, tags
from optmerge.tracking.wandb_rows import Value

log = logging.getLogger(__name__)

FILE = "wandb.json"
ALIASES = ("best", "latest")


class WandbTracker:
    """Logs a search to W&B.

    Args:
        tracking: Where to (mode, project, entity); the mode is not "disabled".
    """

    label = "Weights & Biases"
    remedy = "`optmerge sync RUN` sends it when W&B works again."

    def __init__(self, tracking: TrackingConfig) -> None:
        assert tracking.wandb != "disabled", "a disabled tracker has no sink"
        # In the thread that makes the sink, which imports models' classes too: both read syntax trees, and where two
        # threads do so at once Python 3.11 fails now and then. What is wrong with wandb itself is said by `open`.
        with contextlib.suppress(Exception):
            importlib.import_module("wandb")
        self.tracking = tracking
        self._mode: Literal["online", "offline"] = tracking.wandb
        self._run: Any = None

    def open(self, view: RunView) -> int:
        """Open the W&B run.

        Raises:
            UserError: Online without an API key.
            RunError: Offline, and W&B would not write into the run's folder.
        """
        import wandb

        if self._mode == "online" and not wandb.login(prompt=False):
            raise UserError(
                "tracking.wandb is 'online', and W&B has no API key. Run `wandb login`, or set tracking.wandb to "
                "offline or disabled"
            )
        folder = view.folder
        identity = _identity(folder)
        if identity["segments"] and self._mode == "offline":
            log.warning(
                "W&B cannot resume an offline run: a new segment below %s logs every evaluation again. "
                "`wandb sync` only the newest one.",
                folder / "wandb",
            )
        self._run = wandb.init(
            id=identity["id"],
            dir=str(folder),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            project=self.tracking.project,
            entity=self.tracking.entity,
            group=group(view),
            tags=tags(view),
            name=view.name,
            job_type="search",
            config=config(view),
            reinit="create_new",  # another run of this process, or one that failed, is not ours to write into
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        # A sweep gives runs their ids itself.
        known = {"id": self._run.id, "segments": identity["segments"] + 1}
        page = {"url": self.url} if self.url else {}
        atomic_write(folder / FILE, json.dumps(known | page) + "\n")
        if self._mode == "offline" and not Path(self._run.dir).absolute().is_relative_to(folder.absolute()):
            raise RunError(f"W&B cannot write into {folder}, and would write to {self._run.dir} instead")
        self._run.define_metric("evaluations")
        self._run.define_metric("*", step_metric="evaluations")
        for name in ("objective/best", "select/value"):
            self._run.define_metric(name, step_metric="evaluations", summary="min")
        if self._mode == "offline":
            return 0
        log.info("W&B: %s", self._run.url)
        last = self._run.summary.get("record") if self._run.resumed else None
        return 0 if last is None else int(last) + 1

    @property
    def id(self) -> str:
        """The id of the W&B run."""
        return str(self._run.id)

    @property
    def project(self) -> str:
        """The project that it is in."""
        return str(self._run.project)

    @property
    def url(self) -> str | None:
        """Its page; None offline."""
        return None if self._mode == "offline" else str(self._run.url)

    @property
    def segment(self) -> Path | None:
        """The folder that `wandb sync` sends; None online."""
        return Path(self._run.dir).parent if self._mode == "offline" else None

    def log(self, row: Mapping[str, Value]) -> None:
        """Log one row; its ``evaluations`` are the axis of all charts."""
        self._run.log(dict(row))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set values of the summary."""
        self._run.summary.update(dict(values))

    def show(
        self, evaluations: int, *, tables: Mapping[str, Table] | None = None, pictures: Mapping[str, Path] | None = None
    ) -> None:
        """Log tables and images as one row."""
        import wandb

        shown: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in (pictures or {}).items()}
        for name, table in (tables or {}).items():
            shown[name] = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        if shown:
            self._run.log({"evaluations": evaluations, **shown})

    def keep(self, files: Files) -> None:
        """Log files as an artifact: ``recipe-ID`` or ``report-ID``, the newest of which is ``best`` and ``latest``."""
        import wandb

        artifact = wandb.Artifact(
            f"{files.kind}-{self._run.id}",
            type=files.kind,
            description=files.description,
            metadata=dict(files.metadata),
        )
        for path in files.paths:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact, aliases=list(ALIASES))

    def alert(self, title: str, text: str, level: Level) -> None:
        """Send an alert."""
        self._run.alert(title=title, text=text, level=level)

    def close(self, view: RunView) -> None:
        """Say which models went in, and close the run; one that can be resumed is marked as preempted."""
        if self._mode == "online":
            for name, model in (view.manifest.get("models") or {}).items():
                self._run.use_artifact(_model(name, model))
        if view.status == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=EXIT_CODES.get(view.status, 0))

    def abandon(self) -> None:
        """Close what is open as failed: W&B opens no run twice in a process."""
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=ABANDONED)


def _model(name: str, model: Mapping[str, Any]) -> Any:
    """A model as an artifact without weights: the same model is the same artifact version in every run."""
    import wandb

    reference = str(model.get("reference"))
    artifact = wandb.Artifact(
        "model-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", reference).strip("-")[-100:],
        type="model",
        description=f"{name}: {reference}; no weights, only what identifies it",
        metadata=dict(model),
    )
    with artifact.new_file("model.json") as handle:
        json.dump(dict(model), handle, indent=1, sort_keys=True)
    return artifact


def _identity(folder: Path) -> dict[str, Any]:
    """The W&B id of a run, and how many segments it has; a new id where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {"id": str(found["id"]), "segments": int(found["segments"])}
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as problem:
        log.warning("%s is damaged (%s); W&B gets a new run", folder / FILE, problem)
    return {"id": secrets.token_hex(4), "segments": 0}
