"""Run folders made by hand: what a search would leave, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from optmerge.config.methods import IsoCConfig
from optmerge.merging.coefficients import Static
from optmerge.merging.recipe import Direction, Group, ModelEntry, Recipe
from optmerge.records import Record, Trajectory, Vector, vector_sha256
from optmerge.runner.finalists import best_iterates
from optmerge.runner.folder import RunFolder

TASKS = ("sentiment", "author", "tweets", "topics")
KINDS = {
    "attention.self.query.weight": "attention",
    "attention.self.query.bias": "attention",
    "attention.self.key.weight": "attention",
    "attention.self.key.bias": "attention",
    "attention.self.value.weight": "attention",
    "attention.self.value.bias": "attention",
    "attention.output.dense.weight": "attention",
    "attention.output.dense.bias": "attention",
    "attention.output.LayerNorm.weight": "norm",
    "attention.output.LayerNorm.bias": "norm",
    "intermediate.dense.weight": "mlp",
    "intermediate.dense.bias": "mlp",
    "output.dense.weight": "mlp",
    "output.dense.bias": "mlp",
    "output.LayerNorm.weight": "norm",
    "output.LayerNorm.bias": "norm",
}


@dataclass
class FakeRun:
    """Writes a run folder, step by step."""

    folder: Path
    layers: int = 6
    evaluations: int = 30
    tasks: tuple[str, ...] = TASKS
    seed: int = 0
    gain: float = 0.03  # of the search over the best uniform baseline, in accuracy
    population: int = 1
    labels: bool = True
    on_record: Callable[[Record], None] = lambda record: None
    settings_update: Any = None
    signals: bool = True  # as runs before they had any: False
    collapse_at: int | None = None  # step from which the first task is predicted as one class

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.groups = [
            Group(f"bert.encoder.layer.{layer}.{name}", (f"encoder.layer.{layer}.{name}",), layer, kind)
            for layer in range(self.layers)
            for name, kind in KINDS.items()
        ]
        self.directions = [*self.tasks, "iso-c"]
        self.variables = [f"{group.name}/{direction}" for group in self.groups for direction in self.directions]
        self.trajectory: Trajectory | None = None
        self.rows: list[dict[str, Any]] = []
        self.finalists: list[dict[str, Any]] = []

    @property
    def metric(self) -> str:
        return "accuracy" if self.labels else "agreement"

    def settings(self) -> dict[str, Any]:
        made = {
            "version": 1,
            "base": "zoo/base",
            "experts": {task: f"zoo/{task}" for task in self.tasks},
            "tasks": {
                task: {"expert": task, "data": f"zoo/data/{task}.jsonl", "label": "label"} for task in self.tasks
            },
            "directions": ["experts", {"name": "iso-c", "tolerance": 1e-6}],
            "space": {"granularity": "tensor-wise", "bounds": [-0.5, 2.0], "start": "best-baseline", "rules": []},
            "objective": {"terms": [{"name": "expert-kl", "weight": 1.0, "normalise": "base"}]},
            "driver": {"name": "adam", "lr": 0.02, "batch": None},
            "splits": {"fit": 180, "select": 60, "report": 200},
            "budget": {"evaluations": self.evaluations, "minutes": None, "target": None, "patience": None},
            "seed": self.seed,
            "output": "runs/fake",
        }
        return made | (self.settings_update or {})

    def begin(self) -> FakeRun:
        """search.yaml, manifest.json, an empty trajectory."""
        self.folder.mkdir(parents=True)
        (self.folder / "search.yaml").write_text(yaml.safe_dump(self.settings(), sort_keys=False))
        manifest = {
            "versions": {"python": "3.11.7", "optmerge": "0.1.0", "torch": "2.13.0"},
            "hardware": {"machine": "x86_64", "processor": "A processor", "threads": 2, "device": "cpu"},
            "models": {"base": {"reference": "zoo/base", "sha256": "0" * 64}},
            "data": {task: f"{task}-digest" for task in self.tasks},
            "splits": {task: {"fit": 180, "select": 60, "report": 200} for task in self.tasks},
            "notes": ["topics: 3 duplicates were dropped"],
            "dimension": len(self.variables),
            "variables": self.variables,
            "git": {"commit": "0123456789abcdef", "clean": True},
        }
        self.write_json("manifest.json", manifest)
        self.write_json("result.json", {"status": "running", "reason": ""})
        self.trajectory = Trajectory.open(self.folder)
        return self

    def baselines(self) -> FakeRun:
        """Base, experts, average, a grid, a method; all three splits as the runner scores them."""
        spread = {
            "base": (1.0, 0.776),
            "average": (0.72, 0.795),
            "uniform:0.2": (0.70, 0.797),
            "uniform:0.3": (0.68, 0.79),
        }
        spread |= {"uniform:1": (3.4, 0.568), "method:iso-c:1": (0.55, 0.81), "method:iso-c:1.4": (0.5, 0.815)}
        spread |= {f"expert:{task}": (2.1 + 0.3 * i, 0.6 + 0.01 * i) for i, task in enumerate(self.tasks)}
        for name in sorted(spread, key=lambda name: (name != "base", not name.startswith("expert"))):
            value, accuracy = spread[name]
            select = self.add(phase="baseline", driver="baseline", split="select", value=value, name=name)
            self.row(name, "baseline", name.partition(":")[0], select, accuracy)
        for row in self.rows:
            if row["family"] == "method":
                row["family"] = "iso-c"
            if row["family"] == "average":
                row["family"] = "uniform"
        return self

    def search(self, count: int | None = None, *, fail: tuple[int, ...] = ()) -> FakeRun:
        """``count`` further fit evaluations, each generation's best on select."""
        done = sum(record.phase == "search" for record in self.records)
        for step in range(done, done + (self.evaluations if count is None else count)):
            vector, seen = self.vector(step), self.watched(step)
            value = 0.34 + 0.3 * float(np.exp(-step / 40)) + float(self.random.normal(0, 0.01))
            failed = step in fail
            generation = step // self.population
            self.add(
                phase="search",
                driver="adam",
                split="fit",
                value=None if failed else value,
                generation=generation,
                vector=vector,
                error="out of memory" if failed else None,
                per_task={task: value for task in self.tasks},
                gradient_norm=0.1,
                **seen,
            )
            if (step + 1) % self.population == 0 and not failed:
                self.add(
                    phase="select",
                    driver="adam",
                    split="select",
                    value=value + 0.03,
                    generation=generation,
                    vector=vector,
                    **seen,
                )
        return self

    def watched(self, step: int) -> dict[str, Any]:
        """Signals of a step, and its alarm where there is one."""
        if not self.signals:
            return {}
        gone = self.collapse_at is not None and step >= self.collapse_at
        signals = {"at-bound": 0.1, "row-sum/mean": 1.2, "row-sum/max": 1.5}
        for task in self.tasks:
            bad = gone and task == self.tasks[0]
            signals |= {
                f"agreement/{task}": 0.4 if bad else 0.8 + 0.001 * step,
                f"top-share/{task}": 0.95 if bad else 0.3,
                f"marginal-entropy/{task}": 0.1 if bad else 0.9,
                f"expert-top-share/{task}": 0.25,
                f"expert-marginal-entropy/{task}": 0.95,
            }
        return {"signals": signals} | ({"alarms": {"collapse": f"task {self.tasks[0]} collapses"}} if gone else {})

    def finish(self) -> FakeRun:
        """Report, recipe, result."""
        best = best_iterates(self.records, 1)[0]
        self.row("adam", "search", "search", best, 0.797 + self.gain)
        assert best.vector is not None
        recipe = Recipe(
            base=ModelEntry("zoo/base", "0" * 64),
            experts={task: ModelEntry(f"zoo/{task}", "1" * 64) for task in self.tasks},
            directions=(
                *(Direction(task, "expert") for task in self.tasks),
                Direction("iso-c", "method", IsoCConfig()),
            ),
            groups=tuple(self.groups),
            coefficient_fn=Static(best.vector.reshape(len(self.groups), len(self.directions))),
            heads="own",
        )
        recipe.save(self.folder / "recipe.yaml")
        chosen: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            if row["family"] not in chosen or row["select"] < chosen[row["family"]]["select"]:
                chosen[row["family"]] = row
        for row in self.rows:
            row["chosen"] = chosen[row["family"]] is row
            row["oracle"] = row["mean"] == max(other["mean"] for other in self.rows if other["family"] == row["family"])
        comparison = [self.compared(row) for row in chosen.values() if row["kind"] == "baseline"]
        self.write_json(
            "result.json",
            {
                "status": "finished",
                "reason": f"the budget of {self.evaluations} evaluations is used up",
                "best": {"record": best.id, "select": best.value},
                "metric": self.metric,
                "rows": self.rows,
                "finalists": self.finalists,
                "comparison": comparison,
                "evaluations": self.evaluations,
                "seconds": 100.0,
                "transductive": False,
            },
        )
        return self.close()

    def ended(self, status: str, reason: str) -> FakeRun:
        """An end without a result."""
        self.write_json("result.json", {"status": status, "reason": reason})
        return self.close()

    def close(self) -> FakeRun:
        assert self.trajectory is not None
        self.trajectory.close()
        return self

    @property
    def records(self) -> list[Record]:
        assert self.trajectory is not None
        return self.trajectory.records

    def vector(self, step: int) -> Vector:
        """Coefficients that drift from a start, with structure over depth that a heat map should show."""
        shape = (len(self.groups), len(self.directions))
        depth = np.linspace(0, 1, shape[0])[:, None] * np.linspace(-0.5, 0.5, shape[1])[None, :]
        noise = np.random.default_rng([self.seed, 7]).normal(0, 0.15, shape)
        table = np.tile([0.0] * (shape[1] - 1) + [1.2], (shape[0], 1)) + min(1.0, step / 50) * (depth + noise)
        flat: Vector = np.clip(table.reshape(-1), -0.5, 2.0)
        return flat

    def add(self, **fields: Any) -> Record:
        assert self.trajectory is not None
        elapsed = self.records[-1].elapsed + 0.7 if self.records else 0.7
        if fields.get("vector") is not None:
            fields["vector_sha256"] = vector_sha256(fields["vector"])
        fields.setdefault("seconds", {"merge": 0.1, "evaluate": 0.6})
        if not self.records:  # later ones need no more
            fields.setdefault("memory", {"driver": 1.0, "merge": 3.0, "evaluate": 20.0})
        record = Record(id=len(self.records), elapsed=elapsed, **fields)
        self.trajectory.append(record)
        self.on_record(record)
        return record

    def row(self, name: str, kind: str, family: str, select: Record, accuracy: float) -> None:
        """The report record, its scores per example, and the row of the result."""
        scores = {
            task: {self.metric: (self.random.random(200) < accuracy + 0.02 * (i - 1.5)).astype(float)}
            for i, task in enumerate(self.tasks)
        }
        report = {task: {self.metric: float(values[self.metric].mean())} for task, values in scores.items()}
        record = self.add(
            phase="report" if kind == "search" else "baseline",
            driver="adam" if kind == "search" else "baseline",
            split="report",
            value=None,
            metrics=report,
            name=name,
            vector=select.vector,
        )
        RunFolder(self.folder).save_examples(record.id, scores)
        self.rows.append(
            {
                "name": name,
                "kind": kind,
                "family": family,
                "record": record.id,
                "select": select.value,
                "report": report,
                "mean": accuracy,
                "interval": {
                    "low": accuracy - 0.02,
                    "high": accuracy + 0.02,
                    "level": 0.95,
                    "per_task": {
                        task: [v[self.metric], v[self.metric] - 0.03, v[self.metric] + 0.03]
                        for task, v in report.items()
                    },
                },
                "metric": self.metric,
                "evaluations": self.evaluations if kind == "search" else 1,
                "seconds": 100.0 if kind == "search" else 4.0,
            }
        )

    def finals(self, *, lead: float = 0.01, behind: float = 0.0) -> FakeRun:
        """Three finalists, each ``lead`` behind the one before on select, the others ``behind`` the first on report."""
        for rank, record in enumerate(best_iterates(self.records, 3), 1):
            entry = {
                "rank": rank,
                "iterate": record.id,
                "select": record.value,
                "record": 900 + rank,
                "mean": 0.827 - (behind if rank > 1 else 0.0),
                "interval": {"low": 0.8, "high": 0.85, "level": 0.95, "per_task": {}},
            }
            if rank > 1:
                gap = lead * (rank - 1)
                entry["lead"] = {"difference": gap, "low": gap - 0.005, "high": gap + 0.005}
                entry["behind"] = {"difference": behind, "low": behind - 0.005, "high": behind + 0.005}
            self.finalists.append(entry)
        return self

    def compared(self, row: dict[str, Any]) -> dict[str, Any]:
        difference = self.rows[-1]["mean"] - row["mean"]
        ends = [difference, difference - 0.01, difference + 0.01]
        return {
            "name": "adam",
            "against": row["name"],
            "difference": ends[0],
            "low": ends[1],
            "high": ends[2],
            "level": 0.95,
            "per_task": {task: ends for task in self.tasks},
        }

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content))
