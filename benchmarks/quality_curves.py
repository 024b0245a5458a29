"""Select objective against cost: what a run's records say of it.

    curve = search_curve(folder, "Adam", 0, Sizes(fit=240, select=80, batch=16), teachers=False)
    curve.cost_to(0.31)          # Cost(seconds=4.2, passes=7.5) with what the start needed, or None

A *pass* is one forward pass over the whole fit split of all tasks. An evaluation of a part of it, or of select, is the
share that its examples are of it; a gradient is three (forward, and twice that backward).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optmerge.records import Record, Trajectory

GRADIENT = 3  # forward passes that a gradient counts as


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took."""

    seconds: float
    passes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.passes + other.passes)


NOTHING = Cost(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Point:
    """The best select value that was known at some cost, and the record that has it (None: no record of a search)."""

    cost: Cost
    value: float
    record: int | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """One run.

    Attributes:
        side: Whose.
        seed: Its seed.
        start: What was spent before the first step: teachers, where the objective looks at the experts, and baselines.
        points: In order; their cost is that of the search alone.
        report: Mean of the metric on the report split, of what the run ended with.
        crossing: The same where it first reached the value that it is compared at; None where it never did.
    """

    side: str
    seed: int
    start: Cost
    points: tuple[Point, ...]
    report: float | None = None
    crossing: float | None = None

    @property
    def final(self) -> float:
        """The value that it ended with."""
        return self.points[-1].value

    @property
    def total(self) -> Cost:
        """All that it cost."""
        return self.start + self.points[-1].cost

    def reached(self, value: float) -> Point | None:
        """The first point at or below ``value``."""
        return next((point for point in self.points if point.value <= value), None)

    def cost_to(self, value: float) -> Cost | None:
        """What it took to reach a value, the start included; None where it never did."""
        point = self.reached(value)
        return None if point is None else self.start + point.cost

    def at_passes(self, passes: float) -> float:
        """The value after so many passes, the start included; infinite before there is one."""
        known = [point.value for point in self.points if self.start.passes + point.cost.passes <= passes + 1e-9]
        return known[-1] if known else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Curve:
        """What `to_json` gave."""
        points = tuple(Point(Cost(**p["cost"]), p["value"], p["record"]) for p in data["points"])
        return cls(data["side"], data["seed"], Cost(**data["start"]), points, data["report"], data["crossing"])


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the costs of a run are reckoned with, in examples a task; ``batch`` of a step, None for all of fit."""

    fit: int
    select: int
    batch: int | None = None

    def passes(self, record: Record) -> float:
        """What a record counts."""
        if record.phase == "report" or record.split == "report":
            return 0.0
        if record.split == "select":
            return self.select / self.fit
        share = 1.0 if record.examples == "all" or self.batch is None else min(1.0, self.batch / self.fit)
        return share * (1 if record.gradient_norm is None else GRADIENT)


def search_curve(folder: Path, side: str, seed: int, sizes: Sizes, *, teachers: bool, baselines: bool = True) -> Curve:
    """The curve of a run folder.

    Args:
        folder: Of a finished run.
        side: Its name.
        seed: Its seed.
        sizes: Examples of its splits.
        teachers: Whether the objective looks at the experts, whose outputs on fit and select then are a part of the
            start: as many forward passes as the base's, and counted at what those took.
        baselines: Whether the search starts from the best baseline, so that all of them are a part of the start, and
            their best value is the first point. Else only the base on fit is, which the objective may be relative to.
    """
    records = Trajectory.read(folder, vectors=False).records
    measured = [record for record in records if record.phase == "baseline" and record.split != "report"]
    start = NOTHING
    for record in measured:
        cost = Cost(_seconds(record), sizes.passes(record))
        if baselines or record.split == "fit":
            start += cost
        if teachers and record.name == "base":
            start += cost
    values = [record.value for record in measured if record.split == "select" and record.value is not None]
    values = values if baselines else []
    begun = max((record.elapsed for record in records if record.phase == "baseline"), default=0.0)
    return Curve(side, seed, start, tuple(_search_points(records, begun, sizes, values)))


def _search_points(records: Sequence[Record], begun: float, sizes: Sizes, values: Sequence[float]) -> list[Point]:
    points = [Point(NOTHING, min(values))] if values else []
    passes = 0.0
    for record in records:
        if record.phase not in ("search", "select"):
            continue
        passes += sizes.passes(record)
        if record.phase == "select" and record.value is not None:
            better = not points or record.value < points[-1].value
            last = None if not points else points[-1]
            cost = Cost(record.elapsed - begun, passes)
            points.append(
                Point(cost, record.value, record.id) if better or last is None else Point(cost, last.value, last.record)
            )
    return points


def _seconds(record: Record) -> float:
    """Seconds that an evaluation took when it was made, though it may have come from the cache since."""
    return math.fsum(seconds for name, seconds in record.seconds.items() if name in ("merge", "evaluate"))
