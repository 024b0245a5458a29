"""Pruners: what they drop, what they save, and that a search with one resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers import driver_type
from optmerge.drivers.base import Driver
from optmerge.drivers.pruned_optuna import PrunedOptunaDriver
from optmerge.drivers.pruning import Look, Rungs, SuccessiveHalving, Wilcoxon, make_pruner
from optmerge.drivers.quadratic import optimum, quadratic, same, variables
from optmerge.errors import ConfigError
from optmerge.records import OBJECTIVE, Candidate, Evaluation, Vector

SIZES = {"a": 96, "b": 64}
PRUNERS = {
    "wilcoxon": OptunaConfig(pruner="wilcoxon", startup=8),
    "halving": OptunaConfig(pruner="successive-halving", startup=8),
}


def make(config: OptunaConfig, *, seed: int = 0) -> Driver:
    return driver_type(config)(config, variables(), seed=np.random.SeedSequence(seed), fit_sizes=SIZES, budget=None)


class Noisy:
    """Every example has an optimum of its own near the common one; counts the examples that it looks at."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.centres = {task: optimum(3) + 0.3 * generator.standard_normal((size, 3)) for task, size in SIZES.items()}
        self.looked = 0

    def __call__(self, candidate: Candidate) -> Evaluation:
        places = candidate.examples or {task: tuple(range(size)) for task, size in SIZES.items()}
        self.looked += sum(map(len, places.values()))
        costs = {
            task: {OBJECTIVE: ((candidate.vector - self.centres[task][list(at)]) ** 2).mean(1)}
            for task, at in places.items()
        }
        return Evaluation(float(np.mean([one[OBJECTIVE].mean() for one in costs.values()])), per_example=costs)


def trials(driver: Driver, evaluate: Callable[[Candidate], Evaluation], count: int) -> list[tuple[Vector, int, float]]:
    """So many trials: vector, rungs that it went through, value at the last."""
    found: list[tuple[Vector, int, float]] = []
    rungs = 0
    while len(found) < count:
        (candidate,) = driver.ask()
        evaluation = evaluate(candidate)
        dropped = driver.prunes(candidate, evaluation)
        driver.tell([candidate], [evaluation])
        rungs += 1
        if dropped or not candidate.rung:
            found.append((candidate.vector, rungs, evaluation.value))
            rungs = 0
    return found


@pytest.mark.parametrize("name", PRUNERS)
def test_pruning_saves_examples_and_still_finds_the_optimum(name: str) -> None:
    saved, distances = [], []
    for seed in range(2):
        plain, pruned = Noisy(seed), Noisy(seed)
        trials(make(OptunaConfig(startup=8), seed=seed), plain, 40)
        found = trials(make(PRUNERS[name], seed=seed), pruned, 40)
        assert {rungs for _, rungs, _ in found} > {1, 3}
        saved.append(1 - pruned.looked / plain.looked)
        whole = min((trial for trial in found if trial[1] == 3), key=lambda trial: trial[2])
        distances.append(quadratic(Candidate(whole[0])).value)
    assert min(saved) > 0.4, saved
    assert np.mean(distances) < 0.1 * quadratic(Candidate(variables().start)).value, distances


@pytest.mark.parametrize("name", PRUNERS)
def test_the_same_is_asked_whatever_lies_between(name: str) -> None:
    first = trials(make(PRUNERS[name]), Noisy(0), 20)
    again = trials(make(PRUNERS[name]), Noisy(0), 20)
    assert same([vector for vector, _, _ in first], [vector for vector, _, _ in again])


def test_a_trial_sees_nested_examples_and_the_last_rung_has_no_list() -> None:
    driver = make(OptunaConfig(pruner="successive-halving", rungs=4, reduction=2))
    seen = []
    for _ in range(4):
        (candidate,) = driver.ask()
        seen.append(candidate)
        driver.tell([candidate], [Evaluation(0.5)])
    assert [candidate.rung for candidate in seen] == [True, True, True, False]
    assert [len(candidate.examples["a"]) for candidate in seen[:3] if candidate.examples] == [12, 24, 48]
    for smaller, larger in pairwise(seen[:3]):
        assert smaller.examples is not None
        assert larger.examples is not None
        assert all(set(smaller.examples[task]) < set(larger.examples[task]) for task in SIZES)
    assert seen[3].examples is None
    assert len({candidate.vector.tobytes() for candidate in seen}) == 1


def test_rungs_that_would_be_equal_are_one() -> None:
    rungs = Rungs.make({"a": 1, "b": 2}, rungs=5, reduction=4, seed=np.random.SeedSequence(0))
    assert [dict(positions) for positions in rungs.positions][1:] == [{"a": (0,), "b": (0, 1)}]
    assert len(rungs) == 2
    other = Rungs.make(SIZES, rungs=3, reduction=4, seed=np.random.SeedSequence(1))
    assert other.positions != Rungs.make(SIZES, rungs=3, reduction=4, seed=np.random.SeedSequence(0)).positions


def test_the_signed_rank_test_is_scipys_on_the_examples_of_the_rung() -> None:
    generator = np.random.default_rng(0)
    decided = set()
    for shift in np.linspace(-0.5, 0.8, 40):
        best = generator.standard_normal(40)
        ids = generator.permutation(40)[:12]
        costs = best[ids] + shift + generator.standard_normal(12)
        p = stats.wilcoxon(costs - best[ids], alternative="greater", zero_method="zsplit").pvalue
        expected = bool(p < 0.1 and best.mean() < costs.mean())
        assert Wilcoxon(p_value=0.1).prunes(Look(0, 0.0, [], ids, costs, best)) == expected
        decided.add(expected)
    assert decided == {True, False}


def test_halving_keeps_one_in_reduction() -> None:
    generator = np.random.default_rng(0)
    pruner, before, kept = SuccessiveHalving(reduction=4), [], 0
    for value in generator.random(400).tolist():
        kept += not pruner.prunes(Look(0, value, before, np.arange(0), np.empty(0), None))
        before.append(value)
    assert 80 < kept < 130


def test_what_a_pruner_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="compares one value within one run; leave it out, or a storage"):
        OptunaConfig(pruner="wilcoxon", storage="sqlite:///x.db")
    with pytest.raises(ValueError, match="leave it out, or nsga2"):
        OptunaConfig(pruner="successive-halving", sampler="nsga2")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(make_pruner(PRUNERS["halving"]), SuccessiveHalving)
    with pytest.raises(ConfigError, match=r"needs scipy: pip install 'optmerge\[samplers\]'"):
        make_pruner(PRUNERS["wilcoxon"])


def test_pruned_values_are_never_the_best() -> None:
    driver = make(PRUNERS["halving"])
    assert isinstance(driver, PrunedOptunaDriver)
    for value in (0.9, 0.9, 0.9, 0.1, 0.95):  # the second trial shines on few examples, and is dropped on more
        candidates = driver.ask()
        driver.tell(candidates, [Evaluation(value)])
    assert driver.info() == {"trials": 2.0, "pruned": 1.0, "best": 0.9}
