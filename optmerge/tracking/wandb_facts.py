"""What a tracker shows of a whole run: its config, tags, summary, tables, and the files that are kept.

    config(view), summary(view, "the budget is used up"), result_tables(view), kept_files(view)

Plain data from a `RunView`; nothing here knows a tracking service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from optmerge.runner.alarms import raised_alarms
from optmerge.tracking.coefficients import coefficient_spans, layer_of, split_variable
from optmerge.tracking.page import PAGE
from optmerge.tracking.report import COEFFICIENTS, FRONT, HYPERVOLUME, RESULTS, SIGNALS, TRAJECTORY
from optmerge.tracking.rows import Row
from optmerge.tracking.tracker import Files, Table
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_rows import driver_seconds

MOST_ROWS = 10_000  # of a table: W&B shows no more; what is longer stays in the run folder alone

_MADE_OF = ("dimension", "versions", "hardware", "models", "data", "git")
_PICTURES = (TRAJECTORY, COEFFICIENTS, RESULTS, SIGNALS, FRONT, HYPERVOLUME)
_TAG = 64  # letters that W&B allows


def config(view: RunView) -> dict[str, Any]:
    """The resolved search file, with what the run was made of; keys have no dots, which W&B reads as nesting."""
    made_of = {key: view.manifest[key] for key in _MADE_OF if key in view.manifest}
    plain: dict[str, Any] = _without_dots({**view.settings, **({"manifest": made_of} if made_of else {})})
    return plain


def tags(view: RunView) -> list[str]:
    """Driver, space, objective, method and the base model's name, and what the search file adds."""
    settings = view.settings
    method = settings.get("method")
    facts = [
        *((stage.get("driver") or {}).get("name") for stage in view.stages),
        (settings.get("space") or {}).get("granularity"),
        *(term["name"] for term in (settings.get("objective") or {}).get("terms", [])),
        method.get("name") if isinstance(method, Mapping) else method,
        PurePosixPath(str(settings.get("base") or "")).name,
        *((settings.get("tracking") or {}).get("tags") or []),
    ]
    return list(dict.fromkeys(str(fact)[:_TAG] for fact in facts if fact))


def group(view: RunView) -> str | None:
    """The group of the search file, else the study that several runs share."""
    told = (view.settings.get("tracking") or {}).get("group")
    return told or next((study for stage in view.stages if (study := (stage.get("driver") or {}).get("study"))), None)


def summary(view: RunView, reason: str) -> dict[str, Any]:
    """The baselines, the best so far, the result and the cost, for the table of runs."""
    values: dict[str, Any] = {"status": view.status, "reason": reason, "evaluations": view.evaluations}
    if view.best is not None:
        values |= {
            "best/select": view.best.value,
            "best/record": view.best.record,
            "best/evaluations": view.best.evaluations,
        }
    for row in view.rows:
        values |= _of_row(row)
    for entry in view.result.get("comparison", []):
        values |= {f"against/{entry['against']}/{key}": entry[key] for key in ("difference", "low", "high")}
    values |= {f"alarms/{alarm.kind}": alarm.sentence for alarm in raised_alarms(view.records)}
    values |= {f"seconds/{part}": seconds for part, seconds in seconds_by_part(view).items()}
    values |= {f"memory/{part}": raised for part, raised in memory_by_part(view).items()}
    return {key: value for key, value in values.items() if value is not None}


def seconds_by_part(view: RunView) -> dict[str, float]:
    """Where the run's seconds went: merging, evaluating, the driver, and all of it with what came before."""
    parts = {"merge": 0.0, "evaluate": 0.0, "driver": 0.0}
    before = None
    for record in view.records:
        for part, seconds in record.seconds.items():
            parts[part] = parts.get(part, 0.0) + seconds
        parts["driver"] += driver_seconds(record, before) or 0.0
        before = record
    return parts | {"total": view.seconds}


def memory_by_part(view: RunView) -> dict[str, float]:
    """MiB by which merging, evaluating and the driver raised the most memory that was held."""
    parts: dict[str, float] = {}
    for record in view.records:
        for part, rise in record.memory.items():
            parts[part] = parts.get(part, 0.0) + rise
    return parts


def variables_table(view: RunView) -> Table | None:
    """Every variable with its stage, tensor group, layer and direction; those of a tensor's slices are one row."""
    rows: list[list[Any]] = []
    for stage in range(len(view.stages)):
        names = view.variables(stage)
        coefficients = dict(coefficient_spans(names))
        for name, at in names.spans():
            place = split_variable(name) if name in coefficients else (None, None)
            layer = None if place[0] is None else layer_of(place[0])
            rows.append([stage + 1, name, place[0], layer, place[1], at.stop - at.start])
    if not 0 < len(rows) <= MOST_ROWS:
        return None
    return Table(("stage", "variable", "group", "layer", "direction", "variables"), rows)


def result_tables(view: RunView) -> dict[str, Table]:
    """Scores of baselines and search, the best coefficients, and the trajectory."""
    tables: dict[str, Table] = {}
    if view.rows:
        tasks = list(view.settings.get("tasks") or {})
        tables["results"] = Table(
            ("name", "kind", "select", view.metric, *tasks),
            [
                [
                    row.name,
                    row.kind,
                    row.select,
                    row.mean,
                    *(row.report.get(task, {}).get(row.metric) for task in tasks),
                ]
                for row in view.rows
            ],
        )
    found = view.coefficients
    if found is not None and len(found.rows) <= MOST_ROWS:
        lines = zip(found.rows, found.layers, found.values.tolist(), strict=True)
        tables["best-coefficients"] = Table(
            ("group", "layer", *found.columns), [[name, layer, *values] for name, layer, values in lines]
        )
    if 0 < len(view.records) <= MOST_ROWS:
        tables["trajectory"] = Table(
            ("record", "phase", "split", "name", "value", "elapsed", "error"),
            [[r.id, r.phase, r.split, r.name, r.value, r.elapsed, r.error] for r in view.records],
        )
    return tables


def kept_files(view: RunView) -> Iterator[Files]:
    """The recipe with what it takes to search again, and the report; never the weights of a model."""
    if view.recipe is not None:
        names = [*view.recipe.files("recipe.yaml"), "search.yaml", "manifest.json"]
        yield Files("recipe", _there(view.folder, names), "the best recipe", summary(view, view.reason))
    if (view.folder / PAGE).is_file():
        paths = _there(view.folder, [PAGE, "report.md", *_PICTURES])
        yield Files("report", paths, "the report: one page, and the same in Markdown", {"status": view.status})


def _of_row(row: Row) -> dict[str, Any]:
    if row.kind == "baseline":
        return {f"baseline/{row.name}": row.mean, f"baseline/{row.name}/select": row.select}
    return {
        f"result/{row.metric}": row.mean,
        "result/select": row.select,
        "result/seconds": row.seconds,
        **{f"result/{task}/{row.metric}": metrics.get(row.metric) for task, metrics in row.report.items()},
    }


def _there(folder: Path, names: list[str]) -> list[Path]:
    return [path for name in names if (path := folder / name).is_file()]


def _without_dots(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key).replace(".", "_"): _without_dots(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_dots(entry) for entry in value]
    return value
