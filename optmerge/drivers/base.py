"""The one interface of all drivers: ask for a generation, tell what it was worth, say when to stop.

A driver sees a vector with bounds and finite numbers to make small. It never sees a model, a split or a failure.

    driver = AdamDriver(config, variables, seed=np.random.SeedSequence(0), fit_sizes={"topic": 180}, budget=300)
    while not driver.stop():
        candidates = driver.ask()
        driver.tell(candidates, [evaluate(candidate) for candidate in candidates])

The base class keeps the books (what is open, what was told); subclasses make what they need in ``_set_up`` and do the
mathematics in ``_ask`` and ``_tell``.

A driver that `overlaps` can also be used without generations, so that nobody waits for the last candidate of one:

    candidates = [driver.draw() for _ in range(workers)]
    driver.absorb([3, 0], [evaluation, other])       # what candidates 3 and 0 were worth, while the others are out
    candidates.append(driver.draw())
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt

from optmerge.config.base import Strict
from optmerge.drivers.state import State
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError, RunError
from optmerge.records import Candidate, Evaluation, Need, Record, Vector


class Driver(ABC):
    """Moves a vector by ask and tell.

    The first candidate of the first generation is the start. Every candidate is within bounds, exactly, and its
    vector is read-only. Equal seeds give equal trajectories; no global generator is read or seeded.

    Attributes:
        name: The driver's name in the search file.
        needs_gradient: Whether every candidate needs ``gradient``.
        takes_integers: Whether it can search variables that take whole numbers only.
        generation: How many generations were closed, by `tell` or by the next `ask`.
        config: The driver's settings; a subclass annotates it with their class.

    Args:
        config: The driver's settings.
        variables: What is searched.
        seed: Where all its randomness comes from; it is not changed.
        fit_sizes: Task -> examples in its fit split.
        budget: Fit evaluations of the search, or of its stage of a schedule; None when only the clock, patience or the
            target ends it.

    Raises:
        ConfigError: There is nothing to search, or the settings do not fit the search.
    """

    name: ClassVar[str]
    needs_gradient: ClassVar[bool] = False
    takes_integers: ClassVar[bool] = False
    config: Strict

    def __init__(
        self,
        config: Strict,
        variables: Variables,
        *,
        seed: np.random.SeedSequence,
        fit_sizes: Mapping[str, int],
        budget: int | None,
    ) -> None:
        if not len(variables):
            raise ConfigError(
                "The search space has no variables: every coefficient is frozen by space.rules. Take a 'freeze' out, "
                "or merge the recipe as it is with `optmerge merge`; there is nothing to search."
            )
        if variables.integer is not None and variables.integer.any() and not self.takes_integers:
            name = variables.names[int(np.flatnonzero(variables.integer)[0])]
            raise ConfigError(
                f"The variable {name} takes whole numbers only, and the driver {self.name} moves in small steps. Use "
                "cma, optuna or natural-niches, or take what is chosen out of the space and give it one value."
            )
        self.config = config
        self.variables = variables
        self.seed = seed
        self.fit_sizes = dict(fit_sizes)
        self.budget = budget
        self.generation = 0
        self._open: list[Candidate] | None = None
        self._drawn = 0  # candidates that `draw` gave
        self._out: dict[int, Candidate] = {}  # those of them that are not absorbed
        self._set_up()

    def _set_up(self) -> None:  # noqa: B027 - what few drivers need
        """Make what a driver has beside these books; the constructor calls it last."""

    @property
    def overlaps(self) -> bool:
        """Whether candidates can be drawn while others are out."""
        return False

    @property
    def quorum(self) -> int:
        """How many evaluations `absorb` wants at once; fewer are all there are when the search ends."""
        return 1

    def draw(self) -> Candidate:
        """One more candidate, whatever is still out; the first is the start.

        Candidates are counted from 0. A driver is used either by `ask` and `tell` or by `draw` and `absorb`, and of
        the latter there is no state to save: the same calls with the same values give the same candidates again.

        Raises:
            ValueError: The driver does not overlap.
        """
        if not self.overlaps:
            raise ValueError(f"{self.name} makes one step after the other")
        candidate = self._draw_one(self._drawn)
        self._out[self._drawn] = candidate
        self._drawn += 1
        return candidate

    def absorb(self, numbers: Sequence[int], evaluations: Sequence[Evaluation]) -> None:
        """What some of the candidates that are out were worth, in any order; this counts as a generation.

        Args:
            numbers: Which ones.
            evaluations: Theirs, with finite values (failures replaced by the worst finite value among them), or none
                where no candidate could be scored.

        Raises:
            ValueError: A candidate is not out, a value is not finite, or there are some evaluations and not as many as
                candidates.
        """
        for number in numbers:
            if number not in self._out:
                raise ValueError(f"candidate {number} was not drawn, or is absorbed already")
        _require_finite(evaluations)
        if evaluations and len(evaluations) != len(numbers):
            raise ValueError(f"{len(evaluations)} evaluations of {len(numbers)} candidates")
        self._absorb({number: self._out.pop(number) for number in numbers}, list(evaluations))
        self.generation += 1

    def ask(self) -> list[Candidate]:
        """The next generation. One that is still open is closed first, as nobody could score it.

        The caller may cut the list to its budget. It is empty where other processes work on all that is left.
        """
        if self._open is not None:
            self.tell([], [])
        self._open = self._ask()
        return list(self._open)

    def tell(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> None:
        """What the open generation's first candidates were worth; this closes it.

        Args:
            candidates: The first of what `ask` gave, in its order; none when no candidate could be scored.
            evaluations: Theirs, with finite values (failures replaced by the generation's worst finite value).

        Raises:
            ValueError: The arguments do not belong to the open generation, or a value is not finite.
        """
        if self._open is None:
            raise ValueError("tell without ask: no generation is open")
        if len(candidates) != len(evaluations) or len(candidates) > len(self._open):
            raise ValueError(f"{len(evaluations)} evaluations of {len(candidates)} of {len(self._open)} candidates")
        for asked, told in zip(self._open, candidates, strict=False):
            if not np.array_equal(asked.vector, told.vector):
                raise ValueError("tell got a candidate that is not the one asked at its place")
        _require_finite(evaluations)
        self._tell(list(evaluations))
        self._open = None
        self.generation += 1

    def prunes(self, candidate: Candidate, evaluation: Evaluation) -> bool:
        """Whether the vector of a rung is dropped for what it was worth there; asked before `tell`, changes nothing."""
        return False

    def restart(self, vector: Vector) -> bool:
        """Go on from ``vector`` with smaller steps, and close the generation that is open.

        Returns:
            Whether the driver can: one that follows a gradient. Any other is left as it was.
        """
        if not self._restart(self.variables.project(vector)):
            return False
        self._open = None
        self.generation += 1
        return True

    def recall(self, record: Record) -> None:  # noqa: B027 - what most drivers do
        """The next generation was asked before, and its first evaluation is ``record``.

        A driver that is a function of what it is told asks the same again by itself. One that shares its study with
        other processes takes the candidate from the record.
        """

    def close(self) -> None:  # noqa: B027 - what most drivers do
        """Let go of what outlives an evaluation (connections, threads); the search has ended or was interrupted."""

    def stop(self) -> dict[str, str]:
        """The driver's own reasons to stop: word -> sentence. Empty: go on."""
        return {}

    def info(self) -> dict[str, float]:
        """Finite numbers worth following (step size, condition, ...), as of the last closed generation."""
        return {}

    def state_dict(self) -> State:
        """Everything that the future depends on, as of the last closed generation; for `optmerge.drivers.state`.

        While a generation is open this is the state before it: a driver that loads it asks that generation again.
        """
        head: State = {"driver": self.name, "dimension": len(self.variables), "generation": self.generation}
        return head | self._state()

    def load_state_dict(self, state: State) -> None:
        """Continue where the driver of ``state`` was; this one was made with the same arguments.

        Raises:
            RunError: The state is another driver's, of another dimension, or cannot be continued exactly.
        """
        for key, mine in (("driver", self.name), ("dimension", len(self.variables))):
            if state.get(key) != mine:
                raise RunError(f"The saved state has {key} {state.get(key)!r}, but this search has {mine!r}.")
        try:
            self.generation = cast(int, state["generation"])
            self._load(state)
        except (KeyError, TypeError, ValueError) as problem:
            raise RunError(
                f"The saved state of driver {self.name!r} does not fit this version of optmerge ({problem!r}). "
                "Resume with the version in the run's manifest.json."
            ) from problem
        self._open = None

    def candidate(
        self,
        vector: npt.ArrayLike,
        *,
        needs: frozenset[Need] = frozenset({"value"}),
        examples: Mapping[str, tuple[int, ...]] | None = None,
        rung: bool = False,
    ) -> Candidate:
        """A candidate at ``vector``, projected to bounds (a rounding error outside them is enough to matter)."""
        return Candidate(self.variables.project(vector), needs, examples, rung)

    @abstractmethod
    def _ask(self) -> list[Candidate]:
        """The next generation; must not change what `_state` gives."""

    @abstractmethod
    def _tell(self, evaluations: list[Evaluation]) -> None:
        """Learn from the first ``len(evaluations)`` candidates of the open generation (maybe none)."""

    def _draw_one(self, number: int) -> Candidate:
        """Candidate ``number``."""
        raise NotImplementedError

    def _absorb(self, candidates: Mapping[int, Candidate], evaluations: list[Evaluation]) -> None:
        """Learn from these candidates, by their numbers; there are no evaluations where none could be scored."""
        raise NotImplementedError

    def _restart(self, vector: Vector) -> bool:
        """Take over ``vector``, which is within bounds, and forget the way that led elsewhere; False: cannot."""
        return False

    @abstractmethod
    def _state(self) -> State:
        """What `_load` needs, as of the last closed generation."""

    @abstractmethod
    def _load(self, state: State) -> None:
        """Take over what `_state` gave; ``generation`` is set already."""


def _require_finite(evaluations: Sequence[Evaluation]) -> None:
    for evaluation in evaluations:
        if not math.isfinite(evaluation.value):
            raise ValueError(f"told the value {evaluation.value}; give the worst finite one of the generation")
