"""Time to quality: costs are reckoned as said, mergekit-evolve is replayed as it is, and both zoos can be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pytest
import torch

from benchmarks.adamerging import write_inputs
from benchmarks.byte_llamas import BYTES, byte_tokenizer
from benchmarks.digit_vits import SIDE, TASKS
from benchmarks.mergekit_replay import SIGMA, MergekitEvolve, population, whole_generations
from benchmarks.quality_curves import Cost, Curve, Point, Sizes, search_curve
from benchmarks.quality_judge import Judge
from benchmarks.quality_report import ADAM, OTHER, PLAIN, REFERENCE, AdaMergingSide, SuiteResult, markdown, plot
from optmerge.config.drivers import CmaConfig
from optmerge.drivers.variables import Variables
from optmerge.records import Evaluation, Record, Trajectory
from tests.zoo import make_zoo, zoo_settings


def test_a_pass_is_counted_by_examples() -> None:
    sizes = Sizes(fit=100, select=25, batch=10)

    def record(**facts: Any) -> Record:
        return Record(**({"id": 0, "phase": "search", "driver": "x", "split": "fit", "value": 1.0} | facts))

    assert sizes.passes(record()) == 1.0
    assert sizes.passes(record(examples="abc")) == pytest.approx(0.1)
    assert sizes.passes(record(examples="abc", gradient_norm=1.0)) == pytest.approx(0.3)
    assert sizes.passes(record(phase="select", split="select")) == pytest.approx(0.25)
    assert sizes.passes(record(phase="report", split="report")) == 0.0


def _trajectory(folder: Path) -> None:
    def record(number: int, phase: Any, split: Any, value: float, elapsed: float, **more: Any) -> Record:
        seconds = {"merge": 0.5, "evaluate": 1.5, "cached": 1.0}
        return Record(number, phase, "adam", split, value, elapsed=elapsed, seconds=seconds, **more)

    trajectory = Trajectory.open(folder)
    trajectory.append(record(0, "baseline", "fit", 1.0, 10.0, name="base"))
    trajectory.append(record(1, "baseline", "select", 1.0, 20.0, name="base"))
    trajectory.append(record(2, "baseline", "report", 1.0, 30.0, name="base"))
    trajectory.append(record(3, "baseline", "select", 0.8, 40.0, name="average"))
    trajectory.append(record(4, "search", "fit", 0.9, 41.0, gradient_norm=1.0, examples="abc"))
    trajectory.append(record(5, "select", "select", 0.7, 43.0))
    trajectory.append(record(6, "search", "fit", 0.9, 44.0, gradient_norm=1.0, examples="def"))
    trajectory.append(record(7, "select", "select", 0.75, 46.0))
    trajectory.append(record(8, "report", "report", 0.0, 99.0))
    trajectory.close()


def test_a_curve_has_what_its_start_needed(tmp_path: Path) -> None:
    _trajectory(tmp_path)
    sizes = Sizes(fit=100, select=50, batch=10)
    curve = search_curve(tmp_path, "Adam", 0, sizes, teachers=False)
    assert curve.start == Cost(6.0, 2.0)  # the base on fit, the base and the average on select
    assert [point.value for point in curve.points] == [0.8, 0.7, 0.7]  # the best that was known
    assert [point.record for point in curve.points] == [None, 5, 5]
    assert [point.cost.seconds for point in curve.points] == [0.0, 3.0, 6.0]
    assert [point.cost.passes for point in curve.points] == pytest.approx([0.0, 0.8, 1.6])
    assert curve.cost_to(0.75) == Cost(9.0, pytest.approx(2.8))
    assert curve.cost_to(0.6) is None
    assert curve.at_passes(2.5) == 0.8
    assert curve.at_passes(2.8) == 0.7
    assert curve.at_passes(1.0) == float("inf")
    taught = search_curve(tmp_path, "Adam", 0, sizes, teachers=True)
    assert taught.start == Cost(10.0, 3.5)  # and the experts, each on its own fit and select
    alone = search_curve(tmp_path, "Adam", 0, sizes, teachers=False, baselines=False)
    assert alone.start == Cost(2.0, 1.0)
    assert alone.points[0].record == 5
    assert Curve.from_json(json.loads(json.dumps(taught.to_json()))) == taught


def test_the_replay_asks_what_pycma_asks_and_folds() -> None:
    dimension, seed = 6, np.random.SeedSequence(3)
    start = np.full(dimension, 0.25)
    box = Variables(tuple("abcdef"), np.full(dimension, -1.0), np.full(dimension, 3.0), start)

    def value(weights: np.ndarray[Any, Any]) -> float:
        return float(((weights - np.linspace(0.0, 0.5, dimension)) ** 2).sum())

    asked = []

    def judge(objective_input: Any) -> float:
        asked.append(np.abs(objective_input))
        return value(np.abs(objective_input))

    generator = np.random.RandomState(np.random.MT19937(seed))
    options = {"randn": generator.randn, "seed": np.nan, "maxfevals": 30, "verbose": -9, "verb_log": 0}
    cma.fmin2(judge, start, SIGMA, options)
    assert population(dimension) == 9

    def new() -> MergekitEvolve:
        return MergekitEvolve(CmaConfig(), box, seed=seed, fit_sizes={}, budget=None)

    driver, found, state = new(), [], None
    for generation in range(whole_generations(30, dimension) // 9):
        if generation == 2:
            state = driver.state_dict()
            driver = new()
            driver.load_state_dict(state)
        candidates = driver.ask()
        found += [candidate.vector for candidate in candidates]
        driver.tell(candidates, [Evaluation(value(candidate.vector)) for candidate in candidates])
    assert len(found) == 36
    np.testing.assert_array_equal(np.array(asked[:36]), np.array(found))
    assert any((vector != point).any() for vector, point in zip(found, [start] * 36, strict=True))


def test_the_judge_measures_what_a_search_measures(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path, "bert")
    judge = Judge(zoo_settings(zoo, space="tensor-wise", objective="entropy", device="cpu"))
    space = judge.problem.space
    coefficients = {name: [0.3, 0.2] for name in space.row_of}
    table = judge.table_of(coefficients)
    assert set(map(tuple, table.tolist())) == {(0.3, 0.2)}
    vector = space.encode(table)
    assert judge.select(vector).value == judge.select_table(table).value
    assert 0.0 <= judge.report(table, "accuracy") <= 1.0
    with pytest.raises(ValueError, match="do not merge the same parameters: nothing"):
        judge.table_of(coefficients | {"nothing": [0.0, 0.0]})
    write_inputs(judge, tmp_path / "inputs.pt")
    inputs = torch.load(tmp_path / "inputs.pt", weights_only=True)
    assert list(inputs) == list(judge.problem.calibration.tasks)
    for tensors in inputs.values():
        assert {len(tensor) for tensor in tensors.values()} == {judge.size("fit")}


def test_ways_of_showing_digits_keep_shape_and_differ() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    shown = {name: task.show(images) for name, task in TASKS.items()}
    for pixels in shown.values():
        assert pixels.shape == images.shape
        assert pixels.dtype == np.uint8
        assert (pixels != images).any()
    assert (shown["permuted"].sum(axis=(1, 2)) == images.sum(axis=(1, 2))).all()
    assert (shown["scaled"][:, SIDE // 2 :, SIDE // 2 :] == images[:, ::2, ::2]).all()
    assert not shown["scaled"][:, : SIDE // 2].any()


def test_a_token_is_a_byte() -> None:
    tokenizer = byte_tokenizer()
    text = "def f(x):\n\treturn x  # č €\x00"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert len(tokenizer) == BYTES + 1


def test_tables_and_plot_say_what_holds(tmp_path: Path) -> None:
    def curve(side: str, *values: tuple[float, float, float], report: float = 0.5, seed: int = 0) -> Curve:
        points = tuple(Point(Cost(seconds, passes), value) for seconds, passes, value in values)
        return Curve(side, seed, Cost(1.0, 2.0), points, report, report)

    theirs = Curve("AdaMerging", 0, Cost(0.0, 0.0), (Point(Cost(0, 0), 0.9), Point(Cost(100.0, 50), 0.5)), 0.6)
    ours = [curve(PLAIN, (1.0, 1.0, 0.8), (4.0, 3.0, 0.5), report=0.7)]
    reference = Curve(REFERENCE, 0, Cost(0.0, 1.0), (Point(Cost(0.0, 10), 0.9), Point(Cost(0.0, 103), 0.6)), 0.6)
    best = curve(ADAM, (1.0, 1.0, 0.8), (5.0, 30.0, 0.4))
    warm = curve("start, CMA-ES", (1.0, 1.0, 0.8), (9.0, 200.0, 0.5))
    side = AdaMergingSide(theirs, 1000, 0.55, ours, curve(OTHER, (3.0, 9.0, 0.3)))
    result = SuiteResult("digits", "small ViTs", side, [reference, warm, best])
    assert SuiteResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    told = markdown([result])
    assert "reached in 1/20.0 of its time or less (1/10 on every seed: holds)" in told
    assert "at least AdaMerging's there: holds, at the end: holds" in told
    assert f"{ADAM}: better at equal passes on every seed: holds; reaches its final value in at most 1/5" in told
    assert "start, CMA-ES: better at equal passes on every seed: does not hold" in told
    plot([result], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
