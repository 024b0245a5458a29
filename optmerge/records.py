"""What passes between the parts of a search, and the trajectory that keeps it.

A driver asks for `Candidate`s and is told `Evaluation`s. Every evaluation becomes one `Record`: a line of
``trajectory.jsonl``, written and flushed before anything else happens. Long vectors go to ``vectors.f64`` beside it.

    trajectory = Trajectory.open(run_folder)
    trajectory.append(record)
    for record in trajectory.records: ...
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from optmerge.atomic import disk_errors
from optmerge.errors import RunError

log = logging.getLogger(__name__)

Vector = npt.NDArray[np.float64]
Need = Literal["value", "per_task", "per_example", "gradient", "jacobian"]
Phase = Literal["baseline", "search", "select", "report"]
SplitName = Literal["fit", "select", "report"]
Progress = Callable[[str, int, int | None], None]
"""Told of long work: which stage, how much is done, of how much (None: unknown)."""

OBJECTIVE = "objective"  # the name of an example's share of its task's part, in `Evaluation.per_example`
_STORED = ("vector", "gradient", "curvature")  # what may stand in vectors.f64, besides costs
INLINE = 32  # vectors up to this length stand in the line itself


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point that a driver wants judged.

    Attributes:
        vector: float64[d], in the search space's layout; within bounds.
        needs: What the driver must be told about it.
        examples: Task -> positions in its fit split; None means all of it.
        rung: Whether the driver may ask for more examples of the same vector, once it knows what it is worth on these:
            it counts as the share of the examples that it looks at, and can never be the best.
    """

    vector: Vector
    needs: frozenset[Need] = frozenset({"value"})
    examples: Mapping[str, tuple[int, ...]] | None = None
    rung: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluator found. ``value`` is minimised everywhere; NaN marks a failure, whose reason is ``error``.

    Attributes:
        value: The objective, a mean over tasks of normalised means over examples (no unit).
        per_task: Task -> its normalised part of the objective.
        metrics: Task -> metric name -> mean over examples (accuracy, agreement, raw term values in their units).
        gradient: float64[d], derivative of ``value`` by the vector, when it was needed.
        curvature: float64[d, d], the Gauss-Newton matrix of ``value`` by the vector, when the candidate needed its
            ``jacobian``.
        per_example: Task -> metric name -> float64[n], when it was needed; `OBJECTIVE` is the share of each example in
            the task's part, which is their mean.
        error: Why there is no value.
        seconds: Where the time went: ``merge``, ``evaluate``.
        memory: MiB by which ``merge``, ``evaluate`` and, before them, the ``driver`` raised the most that was held.
        signals: What warns of a collapse, by name, or by name and task: ``at-bound``, ``top-share/TASK`` (no unit
            unless the name says one).
        parts: What is added once to all tasks' parts, by name: coefficient terms and terms of the whole model, raw in
            their units.
        batch_tokens: When memory ran out and the micro-batch was made smaller for it: the most tokens in a forward pass
            of every later evaluation. None otherwise.
        starved: Whether memory ran out, so that another worker, or a smaller micro-batch, may succeed. Not recorded.
    """

    value: float
    per_task: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gradient: Vector | None = None
    curvature: Vector | None = None
    per_example: Mapping[str, Mapping[str, Vector]] | None = None
    error: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)
    signals: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    batch_tokens: int | None = None
    starved: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no finite value."""
        return self.error is not None or not math.isfinite(self.value)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the trajectory."""

    id: int
    phase: Phase
    driver: str
    split: SplitName
    value: float | None
    stage: int = 0  # of the schedule; ``vector`` is of its search space
    generation: int = 0  # of the stage
    name: str | None = None  # a baseline's name, or that of what a report scores
    per_task: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    vector_sha256: str | None = None
    examples: str = "all"  # or the hash of the positions that were looked at
    share: float = 1.0  # of the fit examples, for a rung: a value that cannot be compared with those of all examples
    pruned: bool = False  # for a rung: the driver drops the vector for this value
    counts: int = 1  # evaluations of the budget: with a Jacobian, one for each neighbour too
    asked: int | None = None  # its place among all that its stage asked for, where records come as evaluations end
    seconds: Mapping[str, float] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)  # MiB by which each part raised the peak
    elapsed: float = 0.0  # seconds of work since the run began, summed over resumes
    gradient_norm: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    alarms: Mapping[str, str] = field(default_factory=dict)  # kind -> what its signals warn of, in a sentence
    error: str | None = None
    batch_tokens: int | None = None  # this evaluation ran out of memory; later ones have so many tokens in a pass
    info: Mapping[str, float] = field(default_factory=dict)  # what the driver says of itself: sigma, lr, ...
    vector: Vector | None = None
    gradient: Vector | None = None
    curvature: Vector | None = None
    costs: Mapping[str, Vector] | None = None  # task -> `OBJECTIVE` by example, where the driver asked for it


class Sink(Protocol):
    """A view of a run that is fed while the run is made. None of its failures can reach the run."""

    def start(self, run: Path) -> None:
        """The run directory ``run`` exists; its search.yaml and manifest.json are written."""

    def record(self, record: Record) -> None:
        """``record`` is in the trajectory."""

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Long work outside the trajectory: ``stage`` has done ``done`` of ``total`` (None: unknown)."""

    def finish(self, run: Path, reason: str) -> None:
        """The run ended for ``reason``; recipe.yaml and the report are written if there is a result."""


class EvaluationCount:
    """How many whole fit evaluations of the budget were made up to and with a record, when it is shown all in order.

    Rungs count as their share of the examples; what they have begun when a stage ends counts as one.

    >>> count = EvaluationCount()
    >>> [count(Record(0, "search", "optuna", "fit", 1.0, share=share)) for share in (0.25, 0.75, 1.0)]
    [0, 1, 2]
    >>> count(Record(3, "search", "levenberg-marquardt", "fit", 1.0, counts=4))
    6

    Attributes:
        made: The same with the part of one that rungs have begun.
    """

    def __init__(self) -> None:
        self.made = 0.0
        self._stage = 0

    def __call__(self, record: Record) -> int:  # noqa: D102 - said in the class
        if record.phase == "search":
            if record.stage != self._stage:
                self._stage, self.made = record.stage, float(math.ceil(self.made - 1e-6))
            self.made += record.share * record.counts
        return math.floor(self.made + 1e-6)  # shares are rounded


def vector_sha256(vector: Vector) -> str:
    """The hash of a vector's float64 bytes, in C order, little endian."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f8").tobytes()).hexdigest()


class Trajectory:
    """The append-only truth of a run; reading repairs a torn last line, and nothing else."""

    def __init__(self, folder: Path, records: list[Record]) -> None:
        self.folder = folder
        self.records = records
        self._lines: IO[bytes] | None = None
        self._vectors: IO[bytes] | None = None
        self._aside: ThreadPoolExecutor | None = None  # waits for the disk beside this thread

    @classmethod
    def read(cls, folder: Path, *, vectors: bool = True) -> Trajectory:
        """Read without changing anything on disk. A torn last line is left out with a warning.

        Raises:
            RunError: There is no trajectory, or a line other than the last is damaged.
        """
        path = folder / "trajectory.jsonl"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise RunError(f"{folder} holds no trajectory.jsonl, so it is not a run that has started.") from None
        side = folder / "vectors.f64"
        store = np.fromfile(side, dtype="<f8") if vectors and side.exists() else np.empty(0)
        records: list[Record] = []
        lines = raw.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                if number == len(lines):  # the newline that ends a whole line is missing
                    raise ValueError("the line has no end")
                records.append(_from_json(json.loads(line), store if vectors else None))
            except (ValueError, KeyError, TypeError, IndexError) as problem:
                if any(lines[number:]):
                    raise RunError(
                        f"{path}, line {number} is damaged ({problem}) and is not the last one. "
                        "Restore the file from a copy; optmerge only repairs a torn last line."
                    ) from None
                log.warning("%s: the last line was torn by an interruption; it is dropped and evaluated again", path)
        return cls(folder, records)

    @classmethod
    def open(cls, folder: Path) -> Trajectory:
        """Open for appending, after dropping a torn last line; starts an empty one if there is none."""
        path = folder / "trajectory.jsonl"
        with disk_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            trajectory = cls.read(folder) if path.exists() else cls(folder, [])
            trajectory._lines = open(path, "ab")  # noqa: SIM115 - closed by close()
            trajectory._vectors = open(folder / "vectors.f64", "ab")  # noqa: SIM115
            trajectory._trim(path)
        return trajectory

    def append(self, record: Record) -> None:
        """Write one record and make it durable: vectors first, then the line that points at them.

        A kill may leave vectors without their line, which are cut when it is opened again. Only a power failure can
        leave a line without its vectors: then it is the last one, and counts as torn.

        Raises:
            RunError: The disk refuses. What was written before stays whole; opening again repairs the rest.
        """
        with disk_errors(self.folder / "trajectory.jsonl"):
            self._write(record)
        self.records.append(record)

    def _write(self, record: Record) -> None:
        assert self._lines is not None, "opened with read(), not open()"
        assert self._vectors is not None
        line = _to_json(record)
        for name in _STORED:
            values: Vector | None = getattr(record, name)
            if values is None:
                continue
            if name == "vector" and len(values) <= INLINE:
                line[name] = [float(x) for x in values]
            else:
                line[f"{name}_at"] = [self._vectors.tell() // 8, values.size]
                self._vectors.write(np.ascontiguousarray(values, dtype="<f8").tobytes())
        if record.costs is not None:
            line["costs_at"] = {}
            for task, costs in record.costs.items():
                line["costs_at"][task] = [self._vectors.tell() // 8, len(costs)]
                self._vectors.write(np.ascontiguousarray(costs, dtype="<f8").tobytes())
        self._vectors.flush()
        self._lines.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._lines.flush()
        self._sync()

    def _sync(self) -> None:
        """Wait until both files are on the disk: at the same time, so that they share a commit of its journal."""
        assert self._lines is not None
        assert self._vectors is not None
        if self._aside is None:
            self._aside = ThreadPoolExecutor(1, thread_name_prefix="trajectory")
        vectors = self._aside.submit(os.fsync, self._vectors.fileno())
        try:
            os.fsync(self._lines.fileno())
        finally:
            vectors.result()

    def close(self) -> None:
        """Close both files."""
        if self._aside is not None:
            self._aside.shutdown()
        for handle in (self._lines, self._vectors):
            if handle is not None:
                with suppress(OSError):  # what the disk has refused before, and `append` has told
                    handle.close()

    def _trim(self, path: Path) -> None:
        """Cut what an interruption left behind the last whole record, in both files."""
        assert self._lines is not None
        assert self._vectors is not None
        raw = path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        lines = [line for line in raw[:whole].split(b"\n") if line]
        if len(lines) > len(self.records):  # the last line ends, but does not parse
            whole -= len(lines[-1]) + 1
            lines.pop()
        self._lines.truncate(whole)
        self._lines.seek(0, os.SEEK_END)
        end = 0
        for line in lines:
            entry = json.loads(line)
            stretches = [entry[key] for key in (f"{name}_at" for name in _STORED) if key in entry]
            end = max(end, *map(sum, [*stretches, *entry.get("costs_at", {}).values()]), 0)
        self._vectors.truncate(end * 8)
        self._vectors.seek(0, os.SEEK_END)


def _to_json(record: Record) -> dict[str, Any]:
    line = asdict(replace(record, vector=None, gradient=None, curvature=None, costs=None))
    del line["vector"], line["gradient"], line["curvature"], line["costs"]
    for name, default in (("stage", 0), ("share", 1.0), ("pruned", False), ("counts", 1)):
        if line[name] == default:
            del line[name]
    return {key: value for key, value in line.items() if value not in (None, {})} | {"value": record.value}


def _from_json(line: dict[str, Any], store: Vector | None) -> Record:
    for name in _STORED:
        at = line.pop(f"{name}_at", None)
        if at is not None:
            if store is not None:
                line[name] = _stored(store, at, f"the {name} of evaluation {line.get('id')}")
        elif name in line:
            line[name] = np.asarray(line[name], dtype=np.float64)
    if "curvature" in line:
        line["curvature"] = line["curvature"].reshape(math.isqrt(line["curvature"].size), -1)
    costs = line.pop("costs_at", None)
    if costs is not None and store is not None:
        what = f"the costs of evaluation {line.get('id')}"
        line["costs"] = {task: _stored(store, at, what) for task, at in costs.items()}
    return Record(**line)


def _stored(store: Vector, at: Sequence[int], what: str) -> Vector:
    offset, length = at
    if offset + length > len(store):
        raise IndexError(f"vectors.f64 ends before {what}")
    return store[offset : offset + length].copy()
