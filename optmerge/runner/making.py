"""Making the delta of one whole method at a time, and what that costs.

    with Maker(problem, folder) as maker:
        made = maker.make(TiesConfig(density=0.3))
        made.problem            # the same models and data, with the method as its only direction
        made.cost.seconds, made.cost.peak

A delta lies in a folder of its own until the next one is asked for, so that disk use does not grow with the number of
methods; one that a search has left in the user's cache is read from there. Seconds are those of computing the delta
and writing it to disk, on the CPU. The peak is the anonymous memory of this process above what it held before, sampled
while the delta was made: pages of mapped files are not counted, which the system takes back when it needs to, and what
the C library keeps for reuse is given back first. What was measured once is remembered by content, like all else in
the cache.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from optmerge.config.methods import MethodSettings
from optmerge.merging.coefficients import Table
from optmerge.merging.deltas import Deltas
from optmerge.merging.directions import require_usable
from optmerge.merging.merge import rows_of_parameters
from optmerge.merging.recipe import Direction, Recipe
from optmerge.models.cache import cache_dir, recall, remember
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem

INTERVAL = 0.005  # seconds between two looks at the memory
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a method's delta took.

    Attributes:
        seconds: To compute it and to write it to disk.
        peak: Bytes of anonymous memory above what the process held before.
        statistics: Seconds to gather what it needs of calibration data, which methods share; 0 where it needs nothing,
            and almost 0 where a search had left it in the cache.
    """

    seconds: float
    peak: int
    statistics: float


@dataclass(frozen=True, eq=False)
class Made:
    """A method ready to be judged.

    Attributes:
        problem: With the method as its only direction.
        cost: What its delta took.
    """

    problem: Problem
    cost: Cost


class MemoryWatch:
    """Samples this process's anonymous memory in a thread, as a context manager.

    Attributes:
        peak: Most bytes above what was held at the beginning.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        gc.collect(1)  # what the last delta left behind; the oldest generation takes seconds and is as it was
        _give_back()
        self._before = _anonymous_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, _anonymous_bytes() - self._before)


class Maker:
    """Holds the delta of one method.

    Args:
        problem: Whose models are merged; each of its methods writes into its resident model.
        folder: Where deltas lie while they are looked at; what an interrupted one left there is deleted.
        progress: Told of long work.
    """

    def __init__(self, problem: Problem, folder: Path, progress: Progress | None = None) -> None:
        self._problem = problem
        self._folder = folder
        self._progress = progress
        self._held: tuple[MethodSettings, Made] | None = None
        shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def make(self, config: MethodSettings) -> Made:
        """A method's delta: the one that is held, one from the user's cache, or a new one.

        Raises:
            RunError: The disk refuses.
            Exception: Whatever the method raises.
        """
        if self._held is not None and self._held[0] == config:
            return self._held[1]
        self.release()
        directions = (Direction(config.method_name(), "method", config),)  # type: ignore[arg-type]
        kept = cache_dir() / "directions"
        found = along(self._problem, directions, cache=kept)
        key = found.deltas.key(directions[0])
        known = recall("method-costs", key)
        if known is not None and (kept / key).is_dir():
            found.deltas.prepare(self._progress)
            made = Made(found, Cost(**known))
        else:
            made = self._new(directions)
            remember("method-costs", key, asdict(made.cost))
        self._held = config, made
        return made

    def release(self) -> None:
        """Let go of what is held, and delete it."""
        self._held = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def along_recipe(self, recipe: Recipe) -> tuple[Problem, Table]:
        """The problem with a recipe's directions and groups, and its coefficients [G, D] for the engine.

        Directions whose coefficients are all zero are left out.

        Raises:
            RecipeError: The recipe does not fit the models.
            ConfigError: A user's method cannot be used, or is not what the recipe was made with.
            RunError: The disk refuses.
        """
        self.release()
        problem, kept, table = self._problem, cache_dir() / "directions", recipe.coefficients
        used = np.flatnonzero(table.any(axis=0)).tolist()
        directions = [recipe.directions[column] for column in used]
        require_usable(directions, list(problem.family.experts))
        found = along(problem, directions, cache=kept)
        keys = [found.deltas.key(d) for d in directions if d.kind != "expert" and d.stored is None]
        if not all((kept / key).is_dir() for key in keys):
            found = along(problem, directions, cache=self._folder)
        self._statistics(found)
        found.deltas.prepare(self._progress)
        rows = rows_of_parameters(recipe, problem.family)
        return replace(found, engine=problem.engine.along(found.deltas.segments, rows.first, rows.cuts)), table[:, used]

    def _new(self, directions: Sequence[Direction]) -> Made:
        found = along(self._problem, directions, cache=self._folder)
        statistics = self._statistics(found)
        with MemoryWatch() as watch:
            begun = time.perf_counter()
            found.deltas.prepare(self._progress)
            seconds = time.perf_counter() - begun
        return Made(found, Cost(seconds, watch.peak, statistics))

    def _statistics(self, found: Problem) -> float:
        """Gather what is wanted, and give the seconds that it took when it was gathered first."""
        wanted = found.deltas.statistics_wanted
        if not wanted:
            return 0.0
        begun = time.perf_counter()
        self._problem.statistics.collect(wanted, self._problem.resident, self._progress)
        seconds = time.perf_counter() - begun
        key = hashlib.sha256(self._problem.statistics.key(wanted).encode()).hexdigest()[:32]
        known = recall("statistics-costs", key)
        if known is not None:
            return float(known["seconds"])
        remember("statistics-costs", key, {"seconds": seconds})
        return seconds


def along(problem: Problem, directions: Sequence[Direction], *, cache: Path) -> Problem:
    """The problem with other directions, in the same resident model; nothing is computed yet.

    Args:
        problem: Whose models and data they are.
        directions: All of them get coefficients.
        cache: Where the deltas of methods lie, or will.
    """
    deltas = Deltas(problem.family, directions, cache=cache, statistics=problem.statistics)
    engine = problem.engine.along(deltas.segments, problem.space.row_of, problem.space.cuts)
    return replace(
        problem, directions=tuple(directions), columns=list(range(len(directions))), deltas=deltas, engine=engine
    )


def _anonymous_bytes() -> int:
    """What this process has allocated; where the system does not tell it apart, mapped files with it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def _give_back() -> None:
    """Let the C library return freed memory to the system, where it can; otherwise growth may go unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _STATUS.exists() else None
    if trim is not None:
        trim(0)
