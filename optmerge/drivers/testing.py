"""What every driver must do, as checks that also serve drivers of your own.

Each check takes a `Maker` (`optmerge.drivers.quadratic`), that is, anything that makes a fresh driver from the
arguments the search loop gives:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_driver(check):
        check(functools.partial(MyDriver, MyConfig()))

A check raises AssertionError. The objectives are quadratics over a few variables; all checks together take seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from optmerge.drivers.base import Driver
from optmerge.drivers.overlap_checks import (
    check_absorb_misuse,
    check_draws,
    check_draws_improve,
    check_draws_repeat,
)
from optmerge.drivers.quadratic import (
    EVALUATIONS,
    FIT_SIZES,
    Evaluate,
    Maker,
    begin,
    example_costs,
    noisy,
    quadratic,
    run,
    same,
)
from optmerge.drivers.state import dumps, loads
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError, RunError
from optmerge.records import Candidate, Evaluation


def check_candidates(make: Maker) -> None:
    """Vectors are float64, read-only and within bounds; examples are positions of the fit split; needs are met."""
    for dimension in (1, 2, 5):
        driver = begin(make, dimension=dimension)
        for _ in range(4):
            candidates = driver.ask()
            assert candidates, "a generation without candidates"
            for candidate in candidates:
                vector = candidate.vector
                assert vector.shape == (dimension,)
                assert vector.dtype == np.float64
                assert not vector.flags.writeable, "a caller could change what the driver remembers"
                assert (driver.variables.lower <= vector).all()
                assert (vector <= driver.variables.upper).all()
                assert "gradient" in candidate.needs or not driver.needs_gradient
                for task, positions in (candidate.examples or {}).items():
                    assert len(set(positions)) == len(positions) > 0
                    assert set(positions) <= set(range(FIT_SIZES[task]))
            driver.tell(candidates, [quadratic(candidate) for candidate in candidates])


def check_bounds_pull(make: Maker) -> None:
    """Bounds hold, and are not crossed by a bit, when the optimum lies far outside them or the start on them."""
    box = Variables(("a", "b"), np.array([-0.3, 0.1]), np.array([0.7, 0.3]), np.array([0.7, 0.1]))
    driver = make(box, seed=np.random.SeedSequence(0), fit_sizes=FIT_SIZES, budget=EVALUATIONS)

    def slope(candidate: Candidate) -> Evaluation:
        value = float(-candidate.vector[0] - candidate.vector[1])
        parts, gradient = dict.fromkeys(FIT_SIZES, value), np.array([-1.0, -1.0])
        costs = example_costs(candidate, np.array([value]))
        return Evaluation(value, parts, gradient=gradient, curvature=np.zeros((2, 2)), per_example=costs)

    for vector in run(driver, slope):
        assert (box.lower <= vector).all()
        assert (vector <= box.upper).all()


def check_start_first(make: Maker) -> None:
    """The first candidate is the start, bit for bit."""
    for dimension in (1, 4):
        driver = begin(make, dimension=dimension)
        assert driver.ask()[0].vector.tobytes() == driver.variables.start.tobytes()


def check_generations(make: Maker) -> None:
    """Every tell closes a generation, and so does an ask after a generation that nobody told."""
    driver = begin(make)
    assert driver.generation == 0
    candidates = driver.ask()
    driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
    assert driver.generation == 1
    driver.ask()
    driver.ask()
    assert driver.generation == 2


def check_misuse(make: Maker) -> None:
    """A tell that does not fit what was asked is refused, and so is a value that is not finite."""
    driver = begin(make)
    _refused(driver, [], [], "tell without ask")
    candidates = driver.ask()
    _refused(driver, candidates, [], "fewer evaluations than candidates")
    _refused(driver, candidates, [Evaluation(math.nan) for _ in candidates], "NaN")
    _refused(driver, candidates, [Evaluation(math.inf) for _ in candidates], "an infinity")
    moved = replace(candidates[0], vector=candidates[0].vector + 1.0)
    _refused(driver, [moved], [Evaluation(1.0)], "another vector")
    driver.tell(candidates, [quadratic(candidate) for candidate in candidates])


def _refused(driver: Driver, candidates: list[Candidate], evaluations: list[Evaluation], what: str) -> None:
    try:
        driver.tell(candidates, evaluations)
    except ValueError:
        return
    raise AssertionError(f"tell accepted {what}")


def check_seeds(make: Maker) -> None:
    """Equal seeds give equal trajectories; different ones do not, unless nothing random is drawn at all."""
    first, again = run(begin(make)), run(begin(make))
    assert same(first, again)
    if not begin(make).ask()[0].needs & {"gradient", "jacobian"}:
        assert not same(first, run(begin(make, seed=1))), "the seed changes nothing"


def check_global_generator(make: Maker) -> None:
    """An evaluator that seeds numpy's global generator at each call (lm-eval does) changes nothing."""
    before = np.random.get_state(legacy=False)

    def reseeding(candidate: Candidate) -> Evaluation:
        np.random.seed(1234)
        return quadratic(candidate)

    try:
        for dimension in (3, 200):  # 200: where cma turns diagonal
            evaluations = EVALUATIONS if dimension == 3 else len(begin(make, dimension=dimension).ask()) + 2
            np.random.seed(1234)
            untouched = dumps({"state": np.random.get_state(legacy=False)})
            undisturbed = run(begin(make, dimension=dimension), evaluations=evaluations)
            assert dumps({"state": np.random.get_state(legacy=False)}) == untouched, "the driver draws from numpy's"
            assert same(undisturbed, run(begin(make, dimension=dimension), reseeding, evaluations=evaluations))
    finally:
        np.random.set_state(before)


def check_resume(make: Maker) -> None:
    """From the state at every generation, through bytes, the rest is the uninterrupted trajectory bit for bit."""
    whole = begin(make)
    evaluate = noisy(0)
    values: dict[tuple[bytes, str], Evaluation] = {}

    def remembered(candidate: Candidate) -> Evaluation:
        return values.setdefault((candidate.vector.tobytes(), str(candidate.examples)), evaluate(candidate))

    blobs: list[bytes] = []
    generations: list[tuple[list[Candidate], list[Evaluation]]] = []
    told: list[tuple[dict[str, float], dict[str, str]]] = []
    while len(generations) < 14 and not whole.stop():
        blob = dumps(whole.state_dict())
        candidates = whole.ask()
        assert dumps(whole.state_dict()) == blob, "the state while a generation is open is the one before it"
        results = [remembered(candidate) for candidate in candidates]
        if len(generations) == 2:  # nobody could score it
            candidates, results = [], []
        whole.tell(candidates, results)
        blobs.append(blob)
        generations.append((candidates, results))
        told.append((whole.info(), whole.stop()))
    for start, blob in enumerate(blobs):
        resumed = begin(make)
        resumed.load_state_dict(loads(blob))
        assert resumed.generation == start
        assert dumps(resumed.state_dict()) == blob
        if start:
            assert (resumed.info(), resumed.stop()) == told[start - 1]
        for (candidates, results), expected in zip(generations[start:], told[start:], strict=True):
            asked = resumed.ask()
            if candidates:
                assert same([c.vector for c in asked], [c.vector for c in candidates])
                assert [(c.examples, c.needs) for c in asked] == [(c.examples, c.needs) for c in candidates]
            resumed.tell(candidates, results)
            assert (resumed.info(), resumed.stop()) == expected


def check_state_is_refused(make: Maker) -> None:
    """A state of another dimension or driver raises RunError."""
    state = begin(make, dimension=2).state_dict()
    for wrong, driver in ((state, begin(make, dimension=3)), ({**state, "driver": "?"}, begin(make, dimension=2))):
        try:
            driver.load_state_dict(wrong)
        except RunError:
            continue
        raise AssertionError("a state that does not fit was accepted")


def check_improves(make: Maker) -> None:
    """Halves the distance to the optimum of a convex quadratic within `EVALUATIONS`, in one variable and in three."""
    for dimension in (1, 3):
        _improves(begin(make, dimension=dimension), quadratic)


def check_improves_with_noise(make: Maker) -> None:
    """Halves that distance when values and gradients are noisy too, judged without the noise."""
    _improves(begin(make), noisy(7))


def check_survives_failures(make: Maker) -> None:
    """Halves that distance in twice as many evaluations when every third and, in between, whole generations fail."""
    driver = begin(make, budget=2 * EVALUATIONS)
    calls = iter(range(10**6))

    def failing(candidate: Candidate) -> Evaluation:
        call = next(calls)
        if call % 3 == 1 or 20 <= call < 35:
            return Evaluation(math.nan, error="out of memory")
        return quadratic(candidate)

    _improves(driver, failing, evaluations=2 * EVALUATIONS)
    assert all(math.isfinite(number) for number in driver.info().values())
    assert not driver.stop() or driver.stop().keys() == {"converged"}, "failures alone are no reason to stop"


def _improves(driver: Driver, evaluate: Evaluate, *, evaluations: int = EVALUATIONS) -> None:
    vectors = run(driver, evaluate, evaluations=evaluations)
    true = [quadratic(Candidate(vector)).value for vector in vectors]
    assert min(true) < 0.25 * true[0], f"from {true[0]:.4f} only to {min(true):.4f}"


def check_budget_cuts(make: Maker) -> None:
    """A generation cut short to any length is accepted, leaves a state that resumes, and the search can go on."""
    size = len(begin(make).ask())
    for length in range(size + 1):
        driver = begin(make)
        run(driver, evaluations=2 * size)
        candidates = driver.ask()[:length]
        driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
        resumed = begin(make)
        resumed.load_state_dict(loads(dumps(driver.state_dict())))
        assert same([c.vector for c in resumed.ask()], [c.vector for c in driver.ask()])


def check_whole_numbers(make: Maker) -> None:
    """Variables that take whole numbers only get these and improve, or are refused by name; resuming is exact."""
    box = Variables(
        ("x0", "layers", "x2", "method"),
        np.array([-0.5, -1.0, -0.5, 0.0]),
        np.array([2.0, 4.0, 2.0, 2.0]),
        np.array([0.1, 4.0, 0.1, 2.0]),
        integer=np.array([False, True, False, True]),
        choices={"method": ("first", "second", "third")},
    )

    def begun() -> Driver:
        return make(box, seed=np.random.SeedSequence(0), fit_sizes=FIT_SIZES, budget=EVALUATIONS)

    if not begin(make).takes_integers:
        try:
            begun()
        except ConfigError as problem:
            message = str(problem)
        else:
            raise AssertionError("whole numbers were neither searched nor refused")
        assert "layers" in message, "the message names the variable"
        return
    vectors = run(begun())
    for vector in vectors:
        assert (vector[[1, 3]] == np.rint(vector[[1, 3]])).all()
        assert (box.lower <= vector).all()
        assert (vector <= box.upper).all()
    assert min(quadratic(Candidate(v)).value for v in vectors) < 0.25 * quadratic(Candidate(box.start)).value
    half = begun()
    first = run(half, evaluations=EVALUATIONS // 2)
    resumed = begun()
    resumed.load_state_dict(loads(dumps(half.state_dict())))
    assert same(run(half, evaluations=20), run(resumed, evaluations=20))
    assert same(first, vectors[: len(first)])


def check_views(make: Maker) -> None:
    """``info`` is finite and ``stop`` is words; looking at them changes nothing."""
    watched = begin(make)

    def watching(candidate: Candidate) -> Evaluation:
        for number in watched.info().values():
            assert math.isfinite(number)
        for word, sentence in watched.stop().items():
            assert word
            assert sentence
        dumps(watched.state_dict())
        return quadratic(candidate)

    assert same(run(watched, watching), run(begin(make)))


CHECKS: tuple[Callable[[Maker], None], ...] = (
    check_candidates,
    check_bounds_pull,
    check_start_first,
    check_generations,
    check_misuse,
    check_seeds,
    check_global_generator,
    check_resume,
    check_state_is_refused,
    check_improves,
    check_improves_with_noise,
    check_survives_failures,
    check_budget_cuts,
    check_whole_numbers,
    check_views,
    check_draws,
    check_draws_repeat,
    check_draws_improve,
    check_absorb_misuse,
)
