"""What a search is told, and what chooses its best iterate: terms of every kind, in whole searches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.errors import ConfigError
from optmerge.records import Evaluation, Record, Trajectory
from optmerge.runner.baselines import CachedMeasurements
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.memory import teacher_bytes
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import open_problem
from optmerge.runner.search import Run, search
from optmerge.runner.teachers import SPLITS, Teachers
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]


def run(settings: dict[str, Any], root: Path) -> tuple[Run, list[Record]]:
    made = search(build_config(settings, root=root), root=root)
    return made, Trajectory.read(made.folder).records


def of(records: list[Record], phase: str, split: str) -> list[Record]:
    return [record for record in records if record.phase == phase and record.split == split]


def test_select_is_judged_by_its_own_terms(settings: Settings, tmp_path: Path) -> None:
    objective = {"terms": [{"name": "entropy"}], "select": [{"name": "expert-kl", "temperature": 2.0}]}
    made, records = run(settings(objective=objective), tmp_path)
    scored = [*of(records, "select", "select"), *of(records, "baseline", "select")]
    for record in scored:
        assert all("expert-kl" in found and "entropy" not in found for found in record.metrics.values())
    assert of(records, "baseline", "select")[0].value == pytest.approx(1.0), "divided by the base's on select"
    assert all("entropy" in found for record in of(records, "search", "fit") for found in record.metrics.values())
    best = min(of(records, "select", "select"), key=lambda record: record.value or np.inf)
    assert made.result["best"]["record"] == best.id


def test_without_terms_of_its_own_select_has_the_objectives(settings: Settings, tmp_path: Path) -> None:
    terms = [{"name": "expert-kl"}, {"name": "entropy", "weight": 0.1}]
    _, plain = run(settings(objective={"terms": terms}), tmp_path / "plain")
    _, named = run(settings(objective={"terms": terms, "select": terms}), tmp_path / "named")
    assert [record.value for record in plain] == [record.value for record in named]


def test_no_label_is_read_unless_a_term_asks_for_it(settings: Settings, tmp_path: Path) -> None:
    entropy, accuracy = {"terms": [{"name": "entropy"}]}, [{"name": "accuracy"}]
    for objective, read in ((entropy, False), (entropy | {"select": accuracy}, True)):
        problem = open_problem(build_config(settings(objective=objective), root=tmp_path))
        assert all(data.splits["select"].has_labels is read for data in problem.calibration.tasks.values())


def test_terms_of_the_coefficients_count_on_fit_only_and_are_recorded(settings: Settings, tmp_path: Path) -> None:
    anchor = {"name": "anchor-l2", "weight": 3.0, "scale": "norms"}
    _, records = run(settings(objective={"terms": [{"name": "expert-kl"}, anchor]}), tmp_path)
    fitted = of(records, "search", "fit")
    assert fitted[0].parts == {"anchor-l2": pytest.approx(0.0, abs=1e-12)}
    assert fitted[-1].parts["anchor-l2"] > 1e-4
    for record in fitted:
        parts = sum(record.per_task.values()) / len(record.per_task)
        assert record.value == pytest.approx(parts + 3.0 * record.parts["anchor-l2"], rel=1e-9)
    for record in (*of(records, "select", "select"), *of(records, "baseline", "select")):
        assert record.parts == {}
        assert record.value == pytest.approx(sum(record.per_task.values()) / len(record.per_task), rel=1e-9)
    _, free = run(settings(), tmp_path / "free")
    start, *ends = (record.vector for record in (fitted[0], fitted[-1], of(free, "search", "fit")[-1]))
    moved = [float(np.abs(end - start).max()) for end in ends if end is not None and start is not None]
    assert moved[0] < 0.9 * moved[1], "what is anchored stays nearer to its start"


@pytest.mark.parametrize(
    "terms",
    [
        [{"name": "information-maximisation", "normalise": "none"}],
        [{"name": "expert-kl"}, {"name": "hidden-alignment", "layers": [0, 1.0], "project": 5}],
        [{"name": "pseudo-label"}, {"name": "overlap", "weight": 0.1}, {"name": "similarity", "weight": 0.01}],
    ],
)
def test_terms_of_every_kind_are_searched_and_resumed_alike(
    language_settings: Settings, tmp_path: Path, terms: list[dict[str, Any]]
) -> None:
    space = {"granularity": "layer-wise", "start": 0.1}
    settings = language_settings(objective={"terms": terms}, space=space, budget={"evaluations": 5})
    made, records = run(settings, tmp_path / "one")
    first, *later = (record.value for record in of(records, "search", "fit"))
    assert first is not None
    assert min(value for value in later if value is not None) < first
    again, _ = run(settings, tmp_path / "two")
    assert facts(made.folder) == facts(again.folder)


@pytest.mark.parametrize("layers", [None, [1], [0, 1.0]])
@pytest.mark.parametrize("zoo_kind", ["classifiers", "language models"])
def test_the_plan_knows_what_teachers_take(
    settings: Settings, language_settings: Settings, tmp_path: Path, zoo_kind: str, layers: list[float] | None
) -> None:
    terms: list[dict[str, Any]] = [{"name": "expert-kl", "top_k": 20, "tail_samples": 8, "temperature": 2.0}]
    if layers is not None:
        terms.append({"name": "hidden-alignment", "layers": layers})
    make = settings if zoo_kind == "classifiers" else language_settings
    config = build_config(make(objective={"terms": terms}), root=tmp_path)
    problem = open_problem(config)
    keep = problem.objective.keep(problem.family.num_layers)
    assert keep.layers == (() if layers is None else tuple(range(2 - len(layers), 2)))
    held = Teachers.make(problem).nbytes
    assert teacher_bytes(problem.config, problem.family, problem.calibration, keep, problem.dtype) == held
    assert make_plan(config, root=tmp_path).memory["teacher outputs"] == held


def test_a_baselines_measurement_is_shared_only_where_as_much_is_kept_of_the_experts(
    language_settings: Settings, tmp_path: Path
) -> None:
    few = {"name": "expert-kl", "top_k": 2, "tail_samples": 2}
    values = []
    for objective in ({"terms": [few]}, {"terms": [few], "select": [{"name": "expert-kl", "top_k": None}]}):
        problem = open_problem(build_config(language_settings(objective=objective), root=tmp_path))
        evaluator = Evaluator(problem, Teachers.make(problem))
        table = problem.expand(np.zeros(problem.space.dimension))
        looked_up = CachedMeasurements(evaluator).measure(table, "fit", objective=True, metrics=False)
        assert not isinstance(looked_up, Evaluation)
        assert looked_up.means == evaluator.measure(table, "fit").means
        values.append(looked_up.means["a"]["expert-kl"])
    assert values[0] != values[1]


def test_no_hidden_states_are_kept_of_the_report_split(settings: Settings, tmp_path: Path) -> None:
    terms = [{"name": "expert-kl"}, {"name": "hidden-alignment"}]
    problem = open_problem(build_config(settings(objective={"terms": terms}), root=tmp_path))
    teachers = Teachers.make(problem)
    for split in SPLITS:
        batch = problem.calibration.tasks["a"].splits[split].batches(batch_tokens=10_000)[0]
        assert bool(teachers.batch("a", split, batch).hidden) is (split != "report")


def test_a_gradient_through_a_summary_is_that_of_finite_differences(settings: Settings, tmp_path: Path) -> None:
    terms = [{"name": "information-maximisation", "normalise": "none"}, {"name": "perplexity", "normalise": "none"}]
    problem = open_problem(build_config(settings(objective={"terms": terms}, dtype="float32"), root=tmp_path))
    evaluator = Evaluator(problem, Teachers.make(problem))
    vector = problem.space.start + 0.05
    slope = evaluator.evaluate(vector, "fit", gradient=True).gradient
    assert slope is not None
    direction = slope / np.linalg.norm(slope)
    ahead, behind = (evaluator.evaluate(vector + h * direction, "fit").value for h in (0.01, -0.01))
    assert (ahead - behind) / 0.02 == pytest.approx(float(np.linalg.norm(slope)), rel=0.02)


def test_a_driver_that_follows_a_gradient_is_refused_for_any_term_without_one(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(
        "from optmerge.objective import CoefficientTerm\n\n\n"
        "class Largest(CoefficientTerm):\n"
        "    name = 'largest'\n    differentiable = False\n    unit = 'coefficient'\n    paper = 'none'\n\n"
        "    def value(self, coefficients, geometry):\n        return coefficients.abs().max()\n"
    )
    own = {"name": "custom", "path": "own.py:Largest"}
    objective = {"terms": [{"name": "entropy"}, own]}
    told = (
        r"driver is adam, which needs a gradient, and the objective's term largest has none\. Use a driver that needs"
    )
    with pytest.raises(ConfigError, match=told):
        run(settings(objective=objective), tmp_path)
    both = {"terms": [{"name": "entropy"}, {"name": "accuracy"}, {"name": "f1"}]}
    with pytest.raises(ConfigError, match=r"terms accuracy and f1 have none"):
        build_config(settings(objective=both), root=tmp_path)
    _, records = run(settings(objective=objective, driver={"name": "cma", "population": 4}), tmp_path)
    assert all("largest" in record.parts for record in of(records, "search", "fit"))


def test_a_term_without_anything_to_look_at_is_told_by_the_plan(settings: Settings, tmp_path: Path) -> None:
    objective = {"terms": [{"name": "entropy"}, {"name": "smoothness"}]}
    content = settings(objective=objective, space={"granularity": "task-wise"})
    with pytest.raises(ConfigError, match=r"objective: smoothness compares the coefficients of neighbouring layers"):
        make_plan(build_config(content, root=tmp_path), root=tmp_path)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_is_finite(settings: Settings, tmp_path: Path, weight: float) -> None:
    with pytest.raises(ConfigError, match=r"objective\.terms\.0\.weight"):
        build_config(settings(objective={"terms": [{"name": "entropy", "weight": weight}]}), root=tmp_path)


def test_an_objective_of_coefficients_alone_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"l2 looks at the coefficients only"):
        build_config(settings(objective={"terms": [{"name": "l2"}]}), root=tmp_path)
    with pytest.raises(ConfigError, match=r"objective\.select\.0"):
        build_config(settings(objective={"terms": [{"name": "entropy"}], "select": [{"name": "l2"}]}), root=tmp_path)
