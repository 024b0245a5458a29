"""What every driver that overlaps must do, where candidates are drawn while others are out; any other must refuse.

    vectors = search_without_generations(begin(functools.partial(MyDriver, MyConfig())), workers=6)

The checks are a part of `optmerge.drivers.testing.CHECKS`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from optmerge.drivers.base import Driver
from optmerge.drivers.quadratic import EVALUATIONS, Evaluate, Maker, begin, quadratic, same
from optmerge.records import Candidate, Evaluation, Vector


def search_without_generations(
    driver: Driver, evaluate: Evaluate = quadratic, *, evaluations: int = EVALUATIONS, workers: int = 6, seed: int = 0
) -> list[Vector]:
    """Search as the loop does with workers that end in an order drawn at random. Gives every vector drawn."""
    generator = np.random.default_rng(seed)
    out: dict[int, Candidate] = {}
    vectors: list[Vector] = []
    batch: dict[int, Evaluation] = {}
    while True:
        while len(out) < workers and len(vectors) < evaluations and not driver.stop():
            out[len(vectors)] = driver.draw()
            vectors.append(out[len(vectors)].vector)
        if not out:
            return vectors
        number = int(generator.choice(list(out)))
        batch[number] = evaluate(out.pop(number))
        if len(batch) >= driver.quorum:
            finite = [result.value for result in batch.values() if not result.failed]
            worst = max(finite, default=math.nan)
            told = [replace(r, value=worst, error=None) if r.failed else r for r in batch.values()]
            driver.absorb(list(batch), told if finite else [])
            batch = {}


def check_draws(make: Maker) -> None:
    """A driver that overlaps gives read-only candidates within bounds, the start first; any other refuses."""
    for dimension in (1, 2, 5):
        driver = begin(make, dimension=dimension)
        if not driver.overlaps:
            try:
                driver.draw()
            except ValueError:
                continue
            raise AssertionError("a driver of steps drew a candidate")
        vectors = search_without_generations(driver, evaluations=30)
        assert vectors[0].tobytes() == driver.variables.start.tobytes()
        for vector in vectors:
            assert vector.dtype == np.float64
            assert not vector.flags.writeable
            assert (driver.variables.lower <= vector).all()
            assert (vector <= driver.variables.upper).all()
        assert driver.generation >= (30 - 6) // driver.quorum


def check_draws_repeat(make: Maker) -> None:
    """The same calls with the same values give the same candidates, another order and another seed do not."""
    if not begin(make).overlaps:
        return
    first = search_without_generations(begin(make))
    assert same(first, search_without_generations(begin(make)))
    assert not same(first, search_without_generations(begin(make, seed=1)))


def check_draws_improve(make: Maker) -> None:
    """Drivers that learn do so from results that come late, with failures among them."""
    if not begin(make).overlaps:
        return
    calls = iter(range(10**6))

    def failing(candidate: Candidate) -> Evaluation:
        return Evaluation(math.nan, error="died") if next(calls) % 5 == 3 else quadratic(candidate)

    for evaluate, evaluations in ((quadratic, EVALUATIONS), (failing, 2 * EVALUATIONS)):
        driver = begin(make, budget=evaluations)
        vectors = search_without_generations(driver, evaluate, evaluations=evaluations)
        true = [quadratic(Candidate(vector)).value for vector in vectors]
        assert min(true) < 0.35 * true[0], f"from {true[0]:.4f} only to {min(true):.4f}"


def check_absorb_misuse(make: Maker) -> None:
    """What is not out, or has no finite value, cannot be absorbed; what nobody could score is let go."""
    driver = begin(make)
    if not driver.overlaps:
        return
    drawn = [driver.draw() for _ in range(3)]
    for numbers, evaluations in (
        ([3], [Evaluation(1.0)]),
        ([0], [Evaluation(math.nan)]),
        ([0, 1], [Evaluation(1.0)]),
    ):
        try:
            driver.absorb(numbers, evaluations)
        except ValueError:
            continue
        raise AssertionError(f"absorb accepted {numbers} with {evaluations}")
    driver.absorb([1], [])
    driver.absorb([2, 0], [quadratic(drawn[2]), quadratic(drawn[0])])
    try:
        driver.absorb([1], [Evaluation(1.0)])
    except ValueError:
        return
    raise AssertionError("absorb accepted a candidate twice")
