from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cma
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.config.drivers import CmaConfig
from optmerge.drivers.cma_driver import FLAT_LIMIT, REASONS, CmaDriver
from optmerge.drivers.deviations import relative_deviations
from optmerge.drivers.overlap_checks import search_without_generations
from optmerge.drivers.quadratic import EVALUATIONS, FIT_SIZES, quadratic, run, variables
from optmerge.drivers.variables import Variables
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


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_an_optimum_on_bounds_is_found(covariance: Literal["full", "diagonal"]) -> None:
    box = Variables(tuple("abcd"), np.full(4, -0.5), np.array([0.5, 2.0, 2.0, 2.0]), np.full(4, 0.1))

    def slope(candidate: Candidate) -> Evaluation:  # lowest at the corner (0.5, 2, -0.5) and, within, at 0.7
        a, b, c, d = candidate.vector
        return Evaluation(float(-2 * a - b + 3 * c + (d - 0.7) ** 2))

    driver = strategy(CmaConfig(sigma=0.2, covariance=covariance), box=box)
    best = min(run(driver, slope, evaluations=500), key=lambda vector: slope(Candidate(vector)).value)
    assert best == pytest.approx([0.5, 2.0, -0.5, 0.7], abs=0.02)


def test_steps_are_inversely_proportional_to_the_root_of_curvature() -> None:
    box = replace(variables(), curvature=np.array([1.0, 16.0, 4.0]))
    driver = strategy(CmaConfig(sigma=0.01, population=400, scale="fisher"), box=box)
    spread = np.std([candidate.vector for candidate in driver.ask()], axis=0)
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.2)
    assert spread[0] / spread[2] == pytest.approx(2, rel=0.2)


def test_curvature_that_nobody_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"driver\.scale is 'fisher'.*Let a stage with a gradient driver come first"):
        strategy(CmaConfig(scale="fisher"))


def test_folding_is_what_mergekit_evolve_does() -> None:
    """Unbounded CMA-ES from 1/n with sigma 1/6, told what the absolute values are worth."""
    box = Variables(tuple("abcdef"), np.zeros(6), np.full(6, 9.0), np.full(6, 1 / 3))
    driver = strategy(CmaConfig(sigma=1 / 6, covariance="full", known=0, bounds="fold"), box=box)
    randn = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(0))).randn
    options = {"randn": randn, "seed": np.nan, "verbose": -9, "signals_filename": ""}
    peer = cma.CMAEvolutionStrategy(np.full(6, 1 / 3), 1 / 6, options)
    for number in range(12):
        samples = peer.ask()
        asked = driver.ask()[0 if number else 1 :]  # the start stands before the first generation
        assert [candidate.vector.tolist() for candidate in asked] == [np.abs(sample).tolist() for sample in samples]
        values = [quadratic(candidate) for candidate in asked]
        peer.tell(samples, [value.value for value in values])
        start = [] if number else [Candidate(box.start)]
        driver.tell([*start, *asked], [*([] if number else [quadratic(start[0])]), *values])


def batched(config: CmaConfig) -> CmaDriver:
    sizes = {task: 40 * size for task, size in FIT_SIZES.items()}  # 400 and 280
    return CmaDriver(config, variables(), seed=np.random.SeedSequence(0), fit_sizes=sizes, budget=None)


def test_a_generation_looks_at_one_batch_and_judges_some_twice() -> None:
    driver = batched(CmaConfig(batch=16, population=10))
    seen = []
    for first in (1, 0):
        candidates = driver.ask()
        assert len(candidates) == first + 10 + 2
        examples = [candidate.examples for candidate in candidates]
        assert all(where == examples[0] for where in examples[:-2])
        assert examples[-1] == examples[-2] != examples[0]
        assert examples[0] is not None
        assert examples[-1] is not None
        for task in FIT_SIZES:
            assert len(examples[0][task]) == len(examples[-1][task]) == 16
            assert not set(examples[0][task]) & set(examples[-1][task])
        assert [c.vector.tolist() for c in candidates[-2:]] == [c.vector.tolist() for c in candidates[-4:-2]]
        driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
        seen.append(examples[0])
    assert seen[0] != seen[1]


def test_what_is_judged_twice_moves_nothing() -> None:
    twice, once = batched(CmaConfig(batch=16)), batched(CmaConfig(batch=16, noise="keep"))
    for _ in range(4):
        asked, plain = twice.ask(), once.ask()
        assert [c.vector.tolist() for c in asked[: len(plain)]] == [c.vector.tolist() for c in plain]
        for driver, candidates in ((twice, asked), (once, plain)):
            driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
    assert "noise" in twice.info()
    assert "noise" not in once.info()


def noisy_by_examples(scale: float) -> Callable[[Candidate], Evaluation]:
    """`quadratic` with noise that depends on the vector and the examples, less of it where there are more."""

    def evaluate(candidate: Candidate) -> Evaluation:
        true = quadratic(candidate).value
        if candidate.examples is None:
            return Evaluation(true)
        positions = np.concatenate([np.array(p) for p in candidate.examples.values()])
        own = np.random.default_rng([*positions.tolist(), *candidate.vector.view(np.uint32).tolist()])
        return Evaluation(true + scale * float(own.standard_normal()) / math.sqrt(len(positions)))

    return evaluate


def test_a_batch_grows_where_noise_changes_ranks_and_not_elsewhere() -> None:
    config = CmaConfig(batch=4, population=10, sigma=0.2)
    calm, loud = batched(config), batched(config)
    run(calm, noisy_by_examples(0.0), evaluations=120)
    assert calm.info()["batch"] == 4
    assert calm.info()["noise"] < 0
    run(loud, noisy_by_examples(20.0), evaluations=400)
    assert loud.info()["batch"] == 400
    candidates = loud.ask()
    assert len(candidates) == 10  # nothing is judged twice once all examples are seen
    assert all(candidate.examples is None for candidate in candidates)


def test_a_generation_without_all_its_second_values_measures_no_noise() -> None:
    driver = batched(CmaConfig(batch=16, population=10))
    candidates = driver.ask()[:-1]
    driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
    assert "noise" not in driver.info()


def test_the_second_batch_may_be_harder_as_a_whole() -> None:
    driver = batched(CmaConfig(batch=16, population=10))
    for _ in range(3):
        candidates = driver.ask()
        values = [quadratic(candidate).value for candidate in candidates]
        driver.tell(candidates, [Evaluation(v) for v in [*values[:-2], values[-2] + 3.0, values[-1] + 3.0]])
        assert driver.info()["noise"] < 0


def test_whole_numbers_reach_both_ends_of_their_range() -> None:
    box = Variables(("a", "n"), [-0.5, 0], [2, 7], [0.1, 3], integer=np.array([False, True]))
    for wanted in (0.0, 7.0):

        def far(candidate: Candidate, wanted: float = wanted) -> Evaluation:
            return Evaluation((candidate.vector[0] - 1.0) ** 2 + abs(float(candidate.vector[1]) - wanted))

        vectors = run(strategy(CmaConfig(sigma=0.2), box=box), far, evaluations=120)
        best = min(vectors, key=lambda vector: far(Candidate(vector)).value)
        assert best[1] == wanted
        assert best[0] == pytest.approx(1.0, abs=0.05)


def test_without_generations_the_step_size_needs_no_two_samples_of_one() -> None:
    """From 300 variables on pycma compares two samples of a generation, and draws them once, if it is let."""
    driver = CmaDriver(CmaConfig(), variables(320), seed=np.random.SeedSequence(0), fit_sizes={}, budget=None)
    search_without_generations(driver, workers=100, evaluations=300)
    assert driver.generation >= 9
    assert isinstance(driver._strategy.adapt_sigma, cma.sigma_adaptation.CMAAdaptSigmaCSA)
