"""Natural niches: the paper's equations on small numbers, seeds, split points, and what a search makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optmerge.config.natural_niches import NaturalNichesConfig
from optmerge.drivers.natural_niches import NaturalNichesDriver, group_numbers, one_hots, slerp
from optmerge.drivers.niche_archive import Archive
from optmerge.drivers.variables import Variables
from optmerge.records import OBJECTIVE, Candidate, Evaluation

NAMES = tuple(f"layer.{layer}/{expert}" for layer in range(6) for expert in "ab")


def box(names: Sequence[str] = NAMES, *, upper: float = 2.0, start: float = 0.3) -> Variables:
    d = len(names)
    return Variables(names, np.full(d, -1.0), np.full(d, upper), np.full(d, start))


def driver(variables: Variables | None = None, *, seed: int = 0, **settings: Any) -> NaturalNichesDriver:
    return NaturalNichesDriver(
        NaturalNichesConfig(**settings),
        variables or box(),
        seed=np.random.SeedSequence(seed),
        fit_sizes={"t": 4},
        budget=None,
    )


def costing(*tasks: Sequence[float]) -> Evaluation:
    arrays = {str(number): {OBJECTIVE: np.array(task, dtype=np.float64)} for number, task in enumerate(tasks)}
    return Evaluation(float(np.mean([np.mean(task) for task in tasks])), per_example=arrays)


def filled(alpha: float) -> Archive:
    archive = Archive(capacity=9, alpha=alpha)
    for number, scores in enumerate(([1, 1, 0, 0], [1, 0, 0.5, 0], [1, 0, 0, 0])):
        archive.insert(np.array([float(number)]), np.array(scores), value=0.0)
    return archive


def test_fitness_and_attraction_are_the_papers() -> None:
    archive = filled(alpha=1.0)  # z = 3, 1, 0.5, 1 (for 0)
    assert archive.fitness() == pytest.approx([1 / 3 + 1, 1 / 3 + 1, 1 / 3])
    assert archive.attraction(0) == pytest.approx([0, 1, 0])
    assert archive.attraction(2) == pytest.approx([1, 1, 0])
    half = filled(alpha=0.5)
    assert half.fitness() == pytest.approx([3**-0.5 + 1, 3**-0.5 + 0.5**0.5, 3**-0.5])


def test_without_competition_fitness_is_the_score() -> None:
    assert filled(alpha=0.0).fitness() == pytest.approx([2, 1.5, 1])


def test_a_specialist_stays_where_there_is_competition_and_goes_where_there_is_none() -> None:
    for alpha, left in ((1.0, [0.0, 1.0, 2.0]), (0.0, [0.0, 1.0, 3.0])):
        archive = Archive(capacity=3, alpha=alpha)
        for number, scores in enumerate(([1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0])):
            archive.insert(np.array([float(number)]), np.array(scores), value=0.1 * number)
        assert [vector[0] for vector in archive.vectors] == left


def test_the_worst_value_leaves_among_equally_fit_ones() -> None:
    archive = Archive(capacity=2, alpha=1.0)
    for number, value in enumerate((0.5, 0.9, 0.7)):
        archive.insert(np.array([float(number)]), [0.0, 0.0], value=value)
    assert [vector[0] for vector in archive.vectors] == [0.0, 2.0]
    archive.insert(np.array([3.0]), [0.0, 0.0], value=0.7)  # as good as the last one, and newer
    assert [vector[0] for vector in archive.vectors] == [0.0, 3.0]
    with pytest.raises(ValueError, match="scores of 3 examples, where the archive has those of 2"):
        archive.insert(np.zeros(1), [0.0, 0.0, 0.0], value=0.0)


def test_seeds_are_the_start_and_each_direction_alone() -> None:
    asked = driver(box(("x/a", "x/b", "shared", "y[0]/a"), upper=0.8)).ask()
    assert [candidate.vector.tolist() for candidate in asked] == [
        [0.3, 0.3, 0.3, 0.3],
        [0.8, 0.0, 0.3, 0.8],
        [0.0, 0.8, 0.3, 0.0],
    ]
    assert all(candidate.needs == {"value", "per_example"} for candidate in asked)
    assert one_hots(box(("x", "y"))) == []
    assert group_numbers(("x/a", "x/b", "y[0]/a", "y[1]/a", "y[0]/b", "z")).tolist() == [0, 0, 1, 1, 1, 2]


def test_seeds_that_the_budget_cut_off_come_next() -> None:
    made = driver()
    asked = made.ask()
    made.tell(asked[:1], [costing([0.5, 0.5])])
    assert [c.vector.tolist() for c in made.ask()] == [c.vector.tolist() for c in asked[1:]]
    made.tell([], [])  # none of them could be scored
    assert len(made.ask()) == 1


def test_slerp() -> None:
    first, second = np.array([3.0, 0.0]), np.array([0.0, 1.0])
    assert slerp(first, second, 0.0) == pytest.approx(first)
    assert slerp(first, second, 1.0) == pytest.approx(second)
    assert slerp(first, second, 1 / 3) == pytest.approx([3 * np.cos(np.pi / 6), 0.5])
    assert slerp(first, 2 * first, 0.25) == pytest.approx(1.25 * first)  # parallel: the straight line
    assert slerp(first, 0 * first, 0.25) == pytest.approx(0.75 * first)


@pytest.mark.parametrize("split", [True, False])
def test_children_change_ratio_at_one_group_at_most(split: bool) -> None:
    """Of parents a and b alone, every group of a child is (sin((1-v)90°), sin(v 90°)) with v = w, then 1 - w."""
    splits = set()
    for seed in range(40):
        made = driver(seed=seed, split=split)
        # the start solves nothing, so it is never a parent
        made.tell(made.ask(), [costing([1, 1]), costing([0, 1]), costing([1, 0])])
        child = made.ask()[0].vector.reshape(6, 2)
        ratios = np.arctan2(child[:, 1], child[:, 0]) * 2 / np.pi
        assert np.hypot(*child.T) == pytest.approx(np.ones(6))
        changes = np.flatnonzero(np.abs(np.diff(ratios)) > 1e-9)
        assert len(changes) <= 1
        assert ratios[0] == pytest.approx(ratios[-1]) or ratios[0] == pytest.approx(1 - ratios[-1])
        splits |= {int(change) + 1 for change in changes}
    assert splits == (set(range(1, 6)) if split else set())


def test_attraction_pairs_those_that_complete_each_other() -> None:
    """A twin of A is no partner for it, where a worse individual that knows something else is."""
    names = ("x/a", "x/b", "x/c")
    twins: dict[bool, int] = {True: 0, False: 0}
    for attraction in twins:
        for seed in range(60):
            made = driver(box(names, start=-1.0), seed=seed, attraction=attraction)
            seeds = made.ask()
            made.tell(seeds, [costing([1, 1, 1]), costing([0, 0, 1]), costing([0, 0, 1]), costing([1, 1, 0])])
            twins[attraction] += int(made.ask()[0].vector[2] == 0.0)  # nothing of c in it
    assert twins[True] == 0
    assert twins[False] > 10


def test_tasks_are_worth_the_same_however_many_examples_they_have() -> None:
    made = driver(box(("x/a", "x/b")))
    made.tell(made.ask(), [costing([1] * 6, [1, 1]), costing([0] * 6, [1, 1]), costing([1] * 6, [0, 0])])
    fitness = made._archive.fitness()
    assert fitness[1] == pytest.approx(fitness[2])
    assert made.info()["coverage"] == 1.0


def test_costs_are_cut_to_scores_and_a_failure_stays_out() -> None:
    made = driver(box(("x/a", "x/b")))
    made.tell(made.ask(), [costing([0.25, 7.0]), replace(costing([-0.5, np.nan]), value=9.0), Evaluation(9.0)])
    assert made._archive.scores.tolist() == [[0.75, 0.0], [1.0, 0.0]]
    assert made.info()["archive"] == 2.0


def test_a_search_without_mutation_ends_when_all_are_the_same() -> None:
    made = driver(box(("x",)))
    made.tell(made.ask(), [costing([0.5])])
    assert "converged" in made.stop()
    again = driver(box(("x",)), mutation=0.1)
    again.tell(again.ask(), [costing([0.5])])
    assert again.stop() == {}


def test_complementary_experts_are_merged_better_than_by_one_ratio() -> None:
    """Expert a is needed in half of the layers and b in the others: only a split point finds that without mutation."""
    target = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3).ravel()

    def evaluate(candidate: Candidate) -> Evaluation:
        return costing((candidate.vector - target) ** 2)

    best = {}
    for split in (True, False):
        made = driver(split=split, seed=3)
        for _ in range(200):
            candidates = made.ask()
            made.tell(candidates, [evaluate(candidate) for candidate in candidates])
        best[split] = made.info()["best"]
    assert best[True] < 0.6 * best[False]
