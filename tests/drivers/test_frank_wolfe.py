from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optmerge.config.frank_wolfe import FrankWolfeConfig
from optmerge.drivers import make_driver
from optmerge.drivers.base import Driver
from optmerge.drivers.variables import Variables
from optmerge.records import Evaluation, Vector

GROUPS, EXPERTS = 2, 3
CELLS = np.array([[group, expert] for group in range(GROUPS) for expert in range(EXPERTS)])


def make(config: FrankWolfeConfig, start: float = 0.1) -> Driver:
    d = len(CELLS)
    box = Variables(tuple(map(str, range(d))), np.full(d, -0.5), np.full(d, 2.0), np.full(d, start), cells=CELLS)
    return make_driver(config, box, seed=np.random.SeedSequence(0), fit_sizes={"t": 4}, budget=200)


def told(driver: Driver, gradient: Any) -> Vector:
    """Tell the open-loop driver a gradient at its start; the vertex that it goes to."""
    asked = driver.ask()
    driver.tell(asked, [Evaluation(1.0, gradient=np.array(gradient, dtype=np.float64))])
    return driver.ask()[0].vector


def open_loop(oracle: Any, **others: Any) -> Driver:
    return make(FrankWolfeConfig(variant="hard", step="open-loop", oracle=oracle, **others))


def test_a_vertex_is_one_expert_for_every_group_or_the_base() -> None:
    assert told(open_loop("layer-wise"), [1, -2, -1, 3, 2, 1]).tolist() == [0, 1, 0, 0, 0, 0]
    assert told(open_loop("layer-wise", scale=0.5), [1, -2, -1, -3, 2, 1]).tolist() == [0, 0.5, 0, 0.5, 0, 0]


def test_a_vertex_of_the_whole_model_is_the_expert_with_the_lowest_sum_over_groups() -> None:
    assert told(open_loop("task-wise"), [1, -2, -1, -2, 2, -2]).tolist() == [0, 0, 1, 0, 0, 1]
    assert told(open_loop("task-wise"), [1, 2, 1, 3, 2, 1]).tolist() == [0] * 6


@pytest.mark.parametrize("oracle", ["layer-wise", "task-wise"])
def test_soft_finds_the_best_weights_on_the_simplices(oracle: Any) -> None:
    goal = np.array([0.9, 0.7, -0.4, 0.2, 0.1, 0.3])
    scale = np.array([1.0, 3.0, 1.0, 0.5, 1.0, 2.0])
    driver = make(FrankWolfeConfig(oracle=oracle, top=2, corrections=4))
    best = np.inf
    for _ in range(150):
        if driver.stop():
            break
        (asked,) = driver.ask()
        offset = asked.vector - goal
        assert (asked.vector >= 0).all()
        assert (asked.vector.reshape(GROUPS, EXPERTS).sum(1) <= 1 + 1e-12).all()
        best = min(best, float(offset @ (scale * offset)))
        driver.tell([asked], [Evaluation(float(offset @ (scale * offset)), gradient=2 * scale * offset)])
    # Group 0: x1 + x2 = 1 with 0.9 - x1 = 3 (0.7 - x2), so x = (0.45, 0.55, 0); group 1 is inside.
    assert best == pytest.approx(0.45**2 + 3 * 0.15**2 + 0.4**2, abs=1e-7)
    assert driver.stop().keys() == {"converged"}


def test_hard_stays_in_the_hull_of_start_and_vertices_and_falls() -> None:
    driver = make(FrankWolfeConfig(variant="hard"), start=0.8)  # sums of 2.4, outside the vertices' own hull
    values = []
    for _ in range(60):
        if driver.stop():
            break
        (asked,) = driver.ask()
        sums = asked.vector.reshape(GROUPS, EXPERTS).sum(1)
        assert (asked.vector >= -1e-12).all()
        assert (sums <= 2.4 + 1e-12).all()
        offset = asked.vector - np.array([0.5, 0.0, 0.0, 0.0, 0.3, 0.2])
        values.append(float(offset @ offset))
        driver.tell([asked], [Evaluation(values[-1], gradient=2 * offset)])
    assert min(values) < 0.02 * values[0]


def test_soft_keeps_a_start_outside_the_vertices_hull() -> None:
    driver = make(FrankWolfeConfig(), start=0.8)
    (asked,) = driver.ask()
    offset = asked.vector - 0.7
    driver.tell([asked], [Evaluation(float(offset @ offset), gradient=2 * offset)])
    moved = driver.ask()[0].vector.reshape(GROUPS, EXPERTS)
    assert (moved.sum(1) > 1.0).all()  # not put back into that hull by a jump
    assert (moved < 0.8).all()


@pytest.mark.parametrize("oracle", ["layer-wise", "task-wise"])
def test_soft_is_not_done_before_it_is_at_the_lowest_point_of_its_own_hull(oracle: Any) -> None:
    """From a start outside the vertices' hull, and where no vertex promises anything, weights can still be moved."""
    goal = np.array([1.0, 1.0, 0.8, 0.9, 0.8, 0.5])
    driver = make(FrankWolfeConfig(oracle=oracle), start=0.8)
    best = np.inf
    for _ in range(80):
        if driver.stop():
            break
        (asked,) = driver.ask()
        offset = asked.vector - goal
        assert (asked.vector.reshape(GROUPS, EXPERTS).sum(1) <= 2.4 + 1e-12).all()
        best = min(best, float(offset @ offset))
        driver.tell([asked], [Evaluation(float(offset @ offset), gradient=2 * offset)])
    # Group 0 is 0.4 beyond its sum of 2.4, which its three weights share; group 1 is inside.
    assert best == pytest.approx(3 * (0.4 / 3) ** 2, abs=1e-7)
    assert driver.stop().keys() == {"converged"}


@pytest.mark.parametrize("variant", ["hard", "soft"])
def test_steps_are_smaller_after_a_restart(variant: Any) -> None:
    def first_step(driver: Driver) -> float:
        (asked,) = driver.ask()
        offset = asked.vector - 0.4
        driver.tell([asked], [Evaluation(float(offset @ offset), gradient=2 * offset)])
        return float(np.linalg.norm(driver.ask()[0].vector - asked.vector))

    driver = make(FrankWolfeConfig(variant=variant), start=0.1)
    before = first_step(driver)
    assert driver.restart(driver.variables.start)
    again = make(FrankWolfeConfig(variant=variant), start=0.1)
    again.load_state_dict(driver.state_dict())
    once = first_step(driver)
    assert 0 < once < 0.3 * before  # of soft the hull had shortened the first one
    assert again.restart(again.variables.start)
    assert first_step(again) == pytest.approx(0.1 * once)


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="open-loop is that of the hard variant"):
        FrankWolfeConfig(variant="soft", step="open-loop")
