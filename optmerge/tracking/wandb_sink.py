"""One Weights & Biases run per search: a view of the trajectory, which stays the truth.

    sink = BackgroundSink(WandbSink(config.tracking))      # never in the loop's own thread

The W&B id is made once and kept in ``wandb.json`` of the run folder, so a copied folder continues the same W&B run.
Online, a resumed search continues it. Offline, W&B cannot resume: a resumed search starts a new segment (a folder below
``wandb/``) which holds every evaluation again, and only the newest segment should be synced.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from optmerge.atomic import atomic_write
from optmerge.config.schema import TrackingConfig
from optmerge.errors import UserError
from optmerge.records import Record, Trajectory
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_rows import RowMaker

log = logging.getLogger(__name__)

FILE = "wandb.json"


class WandbSink:
    """Logs a search to W&B.

    Args:
        tracking: Where to (mode, project, entity, group, tags); the mode is not "disabled".
    """

    label = "Weights & Biases"

    def __init__(self, tracking: TrackingConfig) -> None:
        assert tracking.wandb != "disabled", "a disabled tracker has no sink"
        # In the thread that makes the sink, which imports models' classes too: both read syntax trees, and where two
        # threads do so at once Python 3.11 fails now and then. What is wrong with wandb itself is said by `start`.
        with contextlib.suppress(Exception):
            importlib.import_module("wandb")
        self.tracking = tracking
        self._mode: Literal["online", "offline"] = tracking.wandb
        self._run: Any = None
        self._folder = Path()
        self._rows = RowMaker(())
        self._logged: set[int] = set()
        self._seen = -1
        self._alarmed: set[str] = set()

    def start(self, run: Path) -> None:
        """Open the W&B run, and log what the trajectory holds already.

        Raises:
            UserError: Online without an API key.
        """
        import wandb

        if self._mode == "online" and not wandb.login(prompt=False):
            raise UserError(
                "tracking.wandb is 'online', and W&B has no API key. Run `wandb login`, or set tracking.wandb to "
                "offline or disabled"
            )
        self._folder = run
        view = RunView.open(run)
        identity = _identity(run)
        atomic_write(run / FILE, json.dumps(identity) + "\n")
        if identity["segments"] and self._mode == "offline":
            log.warning(
                "W&B cannot resume an offline run: a new segment below %s logs every evaluation again. "
                "`wandb sync` only the newest one.",
                run / "wandb",
            )
        self._run = wandb.init(
            id=identity["id"],
            dir=str(run),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            project=self.tracking.project,
            entity=self.tracking.entity,
            group=self.tracking.group,
            tags=_tags(view, self.tracking),
            name=view.name,
            job_type="search",
            config=wandb_config(view),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        identity["segments"] += 1
        atomic_write(run / FILE, json.dumps(identity) + "\n")
        self._run.define_metric("evaluations")
        self._run.define_metric("*", step_metric="evaluations")
        self._run.define_metric("objective/best", step_metric="evaluations", summary="min")
        if self._mode == "online":
            log.info("W&B: %s", self._run.url)
            known = self._run.summary.get("record")
            if self._run.resumed and known is not None:
                self._logged = set(range(int(known) + 1))
        first, *later = (view.variables(stage).compact for stage in range(len(view.stages)))
        self._rows = RowMaker(first, later, collapsed=view.collapsed)
        for record in view.records:
            self.record(record)

    def record(self, record: Record) -> None:
        """Log one record, once."""
        if record.id <= self._seen:
            return
        if record.id > self._seen + 1:  # events were dropped while the tracker was slow
            self._catch_up(self._folder)
            return
        self._seen = record.id
        row = self._rows.row(record)
        for kind in record.alarms.keys() - self._alarmed:
            self._alarmed.add(kind)
            if record.id not in self._logged:
                self._run.alert(title=f"{self._folder.resolve().name}: {kind}", text=record.alarms[kind], level="WARN")
        if record.id not in self._logged:
            self._run.log(row)
            self._logged.add(record.id)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Nothing: W&B is shown evaluations only."""

    def finish(self, run: Path, reason: str) -> None:
        """Log the rest, the summary, the heat map and the recipe, and close the W&B run."""
        import wandb

        self._catch_up(run)
        view = RunView.open(run)
        self._run.summary.update(summary(view, reason))
        self._run.log({"evaluations": view.evaluations, **_pictures(view)})
        if view.recipe is not None:
            artifact = wandb.Artifact(
                f"recipe-{self._run.id}", type="recipe", metadata=summary(view, reason), description="the best recipe"
            )
            artifact.add_file(str(run / "recipe.yaml"))
            self._run.log_artifact(artifact, aliases=["best", "latest"])
        if view.status in ("finished", "failed"):
            self._run.alert(title=f"{view.name} {view.status}", text=reason)
        self._run.finish(exit_code=1 if view.status == "failed" else 0)

    def _catch_up(self, run: Path) -> None:
        for record in Trajectory.read(run).records[self._seen + 1 :]:
            self.record(record)


def wandb_config(view: RunView) -> dict[str, Any]:
    """The resolved search file, with what the run was made of; keys have no dots, which W&B reads as nesting."""
    made_of = {
        key: view.manifest[key]
        for key in ("dimension", "versions", "hardware", "models", "data")
        if key in view.manifest
    }
    plain: dict[str, Any] = _without_dots({**view.settings, **({"manifest": made_of} if made_of else {})})
    return plain


def summary(view: RunView, reason: str) -> dict[str, Any]:
    """The baselines and the result, for the table of runs."""
    values: dict[str, Any] = {"status": view.status, "reason": reason, "evaluations": view.evaluations}
    if view.best is not None:
        values |= {
            "best/select": view.best.value,
            "best/record": view.best.record,
            "best/evaluations": view.best.evaluations,
        }
    for row in view.rows:
        prefix = "result" if row.kind == "search" else f"baseline/{row.name}"
        values |= (
            {prefix: row.mean, f"{prefix}/select": row.select}
            if row.kind == "baseline"
            else {
                f"{prefix}/{row.metric}": row.mean,
                f"{prefix}/select": row.select,
                f"{prefix}/seconds": row.seconds,
                **{f"{prefix}/{task}/{row.metric}": metrics.get(row.metric) for task, metrics in row.report.items()},
            }
        )
    for entry in view.result.get("comparison", []):
        values |= {f"against/{entry['against']}/{key}": entry[key] for key in ("difference", "low", "high")}
    return {key: value for key, value in values.items() if value is not None}


def _pictures(view: RunView) -> dict[str, Any]:
    """The heat map and the result table."""
    import wandb

    from optmerge.tracking.plots import heat_map_figure, save_figure

    shown: dict[str, Any] = {}
    if view.coefficients is not None:
        path = view.folder / "coefficients.png"
        save_figure(heat_map_figure(view.coefficients), path)
        shown["coefficients"] = wandb.Image(str(path))
    if view.rows:
        tasks = list(view.settings.get("tasks") or {})
        table = wandb.Table(columns=["name", "kind", "select", view.metric, *tasks])
        for row in view.rows:
            scores = [row.report.get(task, {}).get(row.metric) for task in tasks]
            table.add_data(row.name, row.kind, row.select, row.mean, *scores)
        shown["results"] = table
    return shown


def _identity(run: Path) -> dict[str, Any]:
    """The W&B id of a run, and how many segments it has; a new id where there is none."""
    try:
        found: dict[str, Any] = json.loads((run / FILE).read_text(encoding="utf-8"))
        return {"id": str(found["id"]), "segments": int(found["segments"])}
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as problem:
        log.warning("%s is damaged (%s); W&B gets a new run", run / FILE, problem)
    return {"id": secrets.token_hex(4), "segments": 0}


def _tags(view: RunView, tracking: TrackingConfig) -> list[str]:
    settings = view.settings
    facts = [
        *((stage.get("driver") or {}).get("name") for stage in view.stages),
        (settings.get("space") or {}).get("granularity"),
        *(term["name"] for term in (settings.get("objective") or {}).get("terms", [])),
        *tracking.tags,
    ]
    return list(dict.fromkeys(str(fact)[:64] for fact in facts if fact))


def _without_dots(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key).replace(".", "_"): _without_dots(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_dots(entry) for entry in value]
    return value
