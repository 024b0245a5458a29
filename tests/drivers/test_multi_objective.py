"""Samplers of several objectives: they find a front that is known, keep Optuna's books, and resume anywhere."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from math import comb

import numpy as np
import optuna
import pytest

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.multi_objective import divisions, objectives_of, task_parts
from optmerge.drivers.optuna_driver import OptunaDriver
from optmerge.drivers.quadratic import run, same
from optmerge.drivers.state import dumps, loads
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError
from optmerge.records import Candidate, Evaluation
from optmerge.runner.pareto import Region, non_dominated

SAMPLERS = ("nsga2", "nsga3", "motpe")
ENDS = {"first": np.array([0.0, 0.0, 0.0]), "second": np.array([1.0, 1.0, 0.5])}
BOX = Variables(("x", "y", "z"), np.full(3, -1.0), np.full(3, 2.0), np.array([-0.9, 1.9, 1.5]))


def two_quadratics(candidate: Candidate) -> Evaluation:
    """Squared distances from two points: nothing beats a point of the segment between them."""
    parts = {task: float(((candidate.vector - end) ** 2).sum()) for task, end in ENDS.items()}
    return Evaluation(sum(parts.values()) / 2, parts)


def driver(sampler: str, *, seed: int = 0, population: int = 12, box: Variables = BOX) -> OptunaDriver:
    config = OptunaConfig(sampler=sampler, population=population, startup=12)  # type: ignore[arg-type]
    sizes = dict.fromkeys(ENDS, 5)
    return OptunaDriver(config, box, seed=np.random.SeedSequence(seed), fit_sizes=sizes, budget=None)


def off_segment(vector: np.ndarray) -> tuple[float, float]:
    """How far a point is from the segment between the ends, and where along it."""
    start, along = ENDS["first"], ENDS["second"] - ENDS["first"]
    place = float(np.clip((vector - start) @ along / (along @ along), 0, 1))
    return float(np.linalg.norm(vector - start - place * along)), place


@pytest.mark.parametrize(("sampler", "share"), [("nsga2", 0.93), ("nsga3", 0.93), ("motpe", 0.97)])
def test_the_front_of_two_quadratics_is_the_segment_between_their_optima(sampler: str, share: float) -> None:
    """With c the distance of the ends, the front is b = (c - sqrt(a))^2: five sixths of the box of c^2 are above it."""

    def parts_of(vectors: list[np.ndarray]) -> np.ndarray:
        return np.array([list(two_quadratics(Candidate(vector)).per_task.values()) for vector in vectors])

    searched, drawn = (run(driver(name), two_quadratics, evaluations=240) for name in (sampler, "random"))
    region = Region(np.zeros(2), np.full(2, 2.25))
    assert share < region.share(parts_of(searched)) / (5 / 6) < 1.001
    assert region.share(parts_of(searched)) > region.share(parts_of(drawn)) + 0.05
    front = [off_segment(searched[row]) for row in np.flatnonzero(non_dominated(parts_of(searched)))]
    assert np.median([distance for distance, _ in front]) < 0.15  # of 1.5 between the ends
    places = sorted(place for _, place in front)
    assert places[0] < 0.15
    assert places[-1] > 0.85
    assert max(b - a for a, b in pairwise(places)) < 0.2, "a gap in the front"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_is_loaded_in_any_generation_goes_on_exactly(sampler: str) -> None:
    whole = driver(sampler, population=6)
    vectors = run(whole, two_quadratics, evaluations=27)
    for cut in (1, 5, 6, 7, 13, 20):
        half = driver(sampler, population=6)
        run(half, two_quadratics, evaluations=cut)
        resumed = driver(sampler, population=6)
        resumed.load_state_dict(loads(dumps(half.state_dict())))
        assert same(run(resumed, two_quadratics, evaluations=27 - cut), vectors[cut:])


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_children_come_from_those_that_optuna_would_keep(sampler: str) -> None:
    """The parents of the third generation are those of Optuna's own sampler, which keeps books in the storage."""
    mine = driver(sampler, population=6)
    run(mine, two_quadratics, evaluations=13)
    mine.ask()
    trials = mine._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    made = {"nsga2": optuna.samplers.NSGAIISampler, "nsga3": optuna.samplers.NSGAIIISampler}[sampler]
    options = {"dividing_parameter": divisions(2, 6)} if sampler == "nsga3" else {}
    with pytest.warns(optuna.exceptions.ExperimentalWarning) if options else nullcontext():
        theirs = made(population_size=6, seed=0, **options)
    key = f"{made.__name__}:generation"
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=theirs)
    for number, trial in enumerate(trials[:12]):
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=trial.values,
                system_attrs={key: number // 6},
            )
        )
    parents = mine._study.sampler.get_parent_population(mine._study, 2)
    assert [trial.values for trial in parents] == sorted(
        (trial.values for trial in theirs.get_parent_population(study, 2)), key=[t.values for t in trials].index
    )


def test_known_vectors_are_in_the_first_generation() -> None:
    box = replace(BOX, known=(np.full(3, 0.5), np.full(3, 0.25)))
    vectors = run(driver("nsga2", population=4, box=box), two_quadratics, evaluations=6)
    assert [vector.tobytes() for vector in vectors[:3]] == [v.tobytes() for v in (box.start, *box.known)]


def test_every_candidate_needs_the_tasks_parts() -> None:
    asked = driver("nsga3")
    (candidate,) = asked.ask()
    assert candidate.needs == {"value", "per_task"}
    with pytest.raises(ValueError, match="expected a finite part for each of first, second"):
        asked.tell([candidate], [Evaluation(1.0, {"first": 1.0})])
    assert driver("tpe").ask()[0].needs == {"value"}


def test_parts_are_in_the_tasks_order_and_finite() -> None:
    assert task_parts(Evaluation(0.0, {"b": 2.0, "a": 1.0}), ("a", "b")) == [1.0, 2.0]
    assert task_parts(Evaluation(0.0), ()) == []
    with pytest.raises(ValueError, match="finite part"):
        task_parts(Evaluation(0.0, {"a": float("nan")}), ("a",))


def test_a_search_without_tasks_is_refused() -> None:
    assert objectives_of(OptunaConfig(), {}) == ()
    with pytest.raises(ConfigError, match="no task is known"):
        objectives_of(OptunaConfig(sampler="nsga2"), {})


@pytest.mark.parametrize(("tasks", "population"), [(2, 20), (3, 20), (4, 20), (8, 20), (2, 4)])
def test_there_are_no_more_reference_points_than_members_and_one_division_more_would_be_too_many(
    tasks: int, population: int
) -> None:
    parts = divisions(tasks, population)
    assert comb(tasks + parts - 1, parts) <= population
    assert comb(tasks + parts, parts + 1) > population
