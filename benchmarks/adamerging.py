"""Running FusionBench's layer-wise AdaMerging in a process of its own, and judging its coefficients with our evaluator.

    reference = AdaMerging(folder, judge, settings, every=50, threads=1)
    reference.advance(500, limit=3600)  # to step 500; goes on from what is in the folder
    reference.points[-1].seconds, reference.points[-1].select

Only its stepping counts as time. The points are in ``points.jsonl``, one a line, written as they are made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import peer
from benchmarks.quality_judge import Judge
from benchmarks.worker import Worker
from optmerge.atomic import atomic_path

LEAST = 300  # steps, however long they take


@dataclass(frozen=True, slots=True)
class Point:
    """Where AdaMerging stood after some steps.

    Attributes:
        step: Steps made.
        seconds: Of its own stepping.
        fit_passes: Passes over the fit split: three (forward, and twice that backward) for its share of the examples.
        select: The objective on select, by our evaluator.
        coefficients: Parameter -> one for each expert.
    """

    step: int
    seconds: float
    fit_passes: float
    select: float
    coefficients: dict[str, list[float]]


class AdaMerging:
    """The reference of one suite.

    Args:
        folder: Where its inputs, state and points are kept.
        judge: Of a tensor-wise space, with the entropy objective.
        settings: The search file's content that the judge was made of.
        every: Steps between points.
        threads: That it may use.
    """

    BATCH = 16  # examples a task and step; the worker's, which is FusionBench's

    def __init__(self, folder: Path, judge: Judge, settings: Mapping[str, Any], *, every: int, threads: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "points.jsonl"
        self._judge, self._threads = judge, threads
        family = judge.problem.family
        write_inputs(judge, folder / "inputs.pt")
        experts = {name: str(reference) for name, reference in settings["experts"].items()}
        in_order = [experts[task["expert"]] for task in settings["tasks"].values()]
        self._command = [peer("fusionbench"), "-m", "benchmarks.adamerging_worker", "--kind", family.kind]
        self._command += ["--heads", family.heads, "--inputs", str(folder / "inputs.pt")]
        self._command += ["--state", str(folder / "state.pt"), "--steps", str(every), "--seed", "0"]
        self._command += [str(settings["base"]), *in_order]
        self.points = self._read()

    def advance(self, step: int, *, limit: float) -> None:
        """Go on to ``step``; or, after ``limit`` seconds of stepping, no further than `LEAST`."""
        if not self._wanted(step, limit):
            return
        threads = {"OMP_NUM_THREADS": str(self._threads), "MKL_NUM_THREADS": str(self._threads)}
        with Worker(self._command, variables=threads) as worker:
            found, _ = worker.ask("coefficients")
            if not self.points or found["step"] > self.points[-1].step:  # killed between a state and its point
                self._add(found)
            while self._wanted(step, limit):
                self._add(worker.ask("advance")[0])

    def _wanted(self, step: int, limit: float) -> bool:
        if not self.points:
            return True
        last = self.points[-1]
        return last.step < step and (last.seconds < limit or last.step < min(LEAST, step))

    def _add(self, found: Mapping[str, Any]) -> None:
        table = self._judge.table_of(found["coefficients"])
        share = min(1.0, self.BATCH / self._judge.size("fit"))
        step = int(found["step"])
        point = Point(
            step,
            float(found["seconds"]),
            3 * step * share,
            self._judge.select_table(table).value,
            found["coefficients"],
        )
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(point)) + "\n")
        self.points.append(point)

    def _read(self) -> list[Point]:
        if not self._file.exists():
            return []
        return [Point(**json.loads(line)) for line in self._file.read_text(encoding="utf-8").splitlines()]


def write_inputs(judge: Judge, path: Path) -> None:
    """The fit split as a model takes it, task by task in their order: name -> [n, ...], right-padded.

    Raises:
        ValueError: Texts of a language model have different lengths: the reference's mean over tokens is then another
            than ours over texts.
    """
    if path.exists():
        return
    made: dict[str, dict[str, torch.Tensor]] = {}
    for name, task in judge.problem.calibration.tasks.items():
        split = task.splits["fit"]
        batch = split.examples.collate(torch.from_numpy(np.arange(split.size))).to("cpu")
        if batch.scored is not None and len(set(batch.scored.sum(dim=1).tolist())) > 1:
            raise ValueError(f"{name}: the texts do not all have as many predictions that count")
        made[name] = dict(batch.inputs) | ({} if batch.scored is None else {"scored": batch.scored})
    with atomic_path(path) as temporary:
        torch.save(made, temporary)
