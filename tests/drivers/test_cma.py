from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.config.drivers import CmaConfig
from optmerge.drivers.base import Variables
from optmerge.drivers.cma_driver import FLAT_LIMIT, REASONS, CmaDriver, relative_deviations
from optmerge.drivers.testing import EVALUATIONS, quadratic, run, variables
from optmerge.errors import ConfigError, RunError
from optmerge.records import Candidate, Evaluation


def strategy(config: CmaConfig | None = None, *, box: Variables | None = None, seed: int = 0) -> CmaDriver:
    box = variables() if box is None else box
    return CmaDriver(config or CmaConfig(), box, seed=np.random.SeedSequence(seed), fit_sizes={}, budget=None)


def generation(driver: CmaDriver, value: Callable[[int], float]) -> None:
    candidates = driver.ask()
    driver.tell(candidates, [Evaluation(value(index)) for index in range(len(candidates))])


@pytest.mark.parametrize(("dimension", "population"), [(1, 6), (2, 6), (24, 13), (384, 21)])
def test_default_population(dimension: int, population: int) -> None:
    driver = strategy(box=variables(dimension))
    assert len(driver.ask()) == population + 1  # the start stands before it
    driver.tell([], [])
    assert len(driver.ask()) == population


@pytest.mark.parametrize(
    ("dimension", "setting", "diagonal"),
    [(199, "auto", False), (200, "auto", True), (200, "full", False), (3, "diagonal", True)],
)
def test_covariance(dimension: int, setting: Literal["auto", "full", "diagonal"], diagonal: bool) -> None:
    assert strategy(CmaConfig(covariance=setting), box=variables(dimension)).diagonal is diagonal


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bounds_hold_for_every_box_population_and_step(data: st.DataObject) -> None:
    dimension = data.draw(st.integers(1, 5))
    numbers = st.lists(st.floats(-2, 2), min_size=dimension, max_size=dimension)
    lower = np.array(data.draw(numbers))
    upper = lower + np.array(data.draw(st.lists(st.floats(1e-3, 3), min_size=dimension, max_size=dimension)))
    share = np.array(data.draw(st.lists(st.floats(0, 1), min_size=dimension, max_size=dimension)))
    start = np.clip(lower + share * (upper - lower), lower, upper)
    box = Variables(tuple(map(str, range(dimension))), lower, upper, start)
    sigma = data.draw(st.floats(1e-3, 10))
    config = CmaConfig(
        sigma=sigma,
        population=data.draw(st.none() | st.integers(2, 9)),
        covariance=data.draw(st.sampled_from(["full", "diagonal"])),
    )
    vectors = run(strategy(config, box=box), evaluations=EVALUATIONS)
    assert vectors[0].tobytes() == box.start.tobytes()
    for vector in vectors:
        assert (lower <= vector).all()
        assert (vector <= upper).all()


def test_too_few_for_recombination_are_recorded_and_not_told() -> None:
    driver = strategy(CmaConfig(population=8))  # recombines 4
    generation(driver, lambda index: float(index))
    before = driver.info()
    candidates = driver.ask()
    driver.tell(candidates[:3], [quadratic(candidate) for candidate in candidates[:3]])
    assert driver.info() == before
    candidates = driver.ask()
    driver.tell(candidates[:4], [quadratic(candidate) for candidate in candidates[:4]])
    assert driver.info() != before


def test_generations_flattened_by_failures_do_not_stop_the_search() -> None:
    driver = strategy()
    generation(driver, lambda index: float(index))
    before = driver.info()
    for _ in range(FLAT_LIMIT - 1):
        generation(driver, lambda _: 3.0)  # one scored, the others were told as the worst finite value
    assert not driver.stop()
    assert driver.info() == before
    generation(driver, lambda index: float(index))
    for _ in range(FLAT_LIMIT - 1):
        generation(driver, lambda _: 3.0)
    assert not driver.stop()
    generation(driver, lambda _: 3.0)
    assert list(driver.stop()) == ["flat"]


def test_convergence_is_said_in_words() -> None:
    driver = strategy(CmaConfig(sigma=0.2))
    run(driver, evaluations=3000)
    reasons = driver.stop()
    assert reasons
    assert all(REASONS[word] == sentence for word, sentence in reasons.items())


def test_one_variable_converges_on_a_bound() -> None:
    box = Variables(("a",), np.array([0.0]), np.array([1.0]), np.array([0.0]))
    driver = strategy(box=box)
    best = min(run(driver, lambda c: Evaluation(-float(c.vector[0])), evaluations=200), key=lambda v: -v[0])
    assert best[0] > 0.999


def test_options_are_not_read_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cma_signals.in").write_text("{'timeout': 0, 'maxiter': 0}")
    monkeypatch.chdir(tmp_path)
    driver = strategy()
    run(driver, evaluations=30)
    assert not driver.stop()
    assert os.listdir(tmp_path) == ["cma_signals.in"]  # and nothing is written there


def test_a_replay_that_ends_elsewhere_is_refused() -> None:
    driver = strategy()
    run(driver, evaluations=30)
    state = driver.state_dict()
    mean = np.array(state["mean"])
    mean[0] = math.nextafter(mean[0], math.inf)
    with pytest.raises(RunError, match=r"Replaying \d+ generations of cma does not end where the saved state was"):
        strategy().load_state_dict({**state, "mean": mean})
    with pytest.raises(RunError, match="cannot be continued exactly"):
        strategy(seed=1).load_state_dict(state)


def test_state_is_small() -> None:
    driver = strategy(box=variables(96))
    run(driver, lambda candidate: quadratic(Candidate(candidate.vector)), evaluations=90)
    state = driver.state_dict()
    assert len(np.array(state["values"])) == 90


def knowing(*known: list[float], norms: list[float] | None = None) -> Variables:
    box = variables()
    return replace(box, known=tuple(map(np.array, known)), norms=None if norms is None else np.array(norms))


def test_known_vectors_enter_the_first_generation_to_the_last_bit() -> None:
    box = knowing([0.7, 0.1, 0.3], [-0.5, 2.0, 1.0], [0.2, 0.2, 0.2], [0.3, 0.3, 0.3])
    driver = strategy(CmaConfig(population=6), box=box)  # takes half of six
    candidates = driver.ask()
    assert len(candidates) == 7
    for candidate, vector in zip(candidates, [box.start, *box.known[:3]], strict=False):
        assert candidate.vector.tobytes() == vector.tobytes()
    assert not any(np.allclose(candidate.vector, box.known[3]) for candidate in candidates)
    assert len(strategy(CmaConfig(known=0), box=box).ask()) == len(strategy().ask())


def test_a_good_known_vector_saves_generations() -> None:
    def after(box: Variables) -> float:
        vectors = run(strategy(box=box), evaluations=35)
        return min(quadratic(Candidate(vector)).value for vector in vectors[15:])

    assert after(knowing([0.9, 1.1, 0.9])) < 0.5 * after(knowing())


def test_steps_are_inversely_proportional_to_norms() -> None:
    config = CmaConfig(sigma=0.01, population=400, scale="norms")
    driver = strategy(config, box=knowing(norms=[1.0, 4.0, 2.0]))
    spread = np.std([candidate.vector for candidate in driver.ask()], axis=0)
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.2)
    assert spread[0] / spread[2] == pytest.approx(2, rel=0.2)
    assert math.prod(relative_deviations(np.array([1.0, 4.0, 2.0]))) == pytest.approx(1)


@pytest.mark.parametrize("norms", [[0.0, 0.0], [3.0, 3.0]])
def test_equal_norms_change_nothing(norms: list[float]) -> None:
    assert relative_deviations(np.array(norms)) == pytest.approx([1.0, 1.0])


def test_norms_that_nobody_measured_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"driver\.scale is 'norms'"):
        strategy(CmaConfig(scale="norms"))


def test_restarts_double_the_population_and_then_stop() -> None:
    driver = strategy(CmaConfig(population=6, restarts=2))
    sizes = []
    for _ in range(3 * FLAT_LIMIT):
        assert not driver.stop()
        candidates = driver.ask()
        sizes.append(len(candidates))
        driver.tell(candidates, [Evaluation(3.0) for _ in candidates])
    assert sizes == [7] + [6] * (FLAT_LIMIT - 1) + [12] * FLAT_LIMIT + [24] * FLAT_LIMIT
    assert list(driver.stop()) == ["flat"]
    assert driver.info()["restart"] == 2


def test_a_converged_search_goes_on_from_the_start_and_resumes_there() -> None:
    config = CmaConfig(sigma=0.2, population=6, restarts=1)
    whole = strategy(config)
    while not whole.info()["restart"]:
        run(whole, evaluations=6)
    run(whole, evaluations=24)
    assert whole.info()["sigma"] > 0.01  # no longer the converged one's
    resumed = strategy(config)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.info() == whole.info()
    for _ in range(3):
        first, again = whole.ask(), resumed.ask()
        assert len(first) == 12
        assert [c.vector.tobytes() for c in first] == [c.vector.tobytes() for c in again]
        for driver, candidates in ((whole, first), (resumed, again)):
            driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
