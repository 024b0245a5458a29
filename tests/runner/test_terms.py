"""Searches by terms that bring files: lm-eval tasks, and classes of one's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunError, RunInterrupted
from optmerge.export.api import write_checkpoint
from optmerge.records import Trajectory
from optmerge.runner.search import Run, resume, search
from tests.objective.test_custom import CONSTANT, DEPTH, SIZE
from tests.objective.test_harness import task_file
from tests.zoo import make_zoo, zoo_settings

CMA = {"name": "cma", "population": 4}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), "llama-tied")


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def after(calls: int) -> Callable[[], str | None]:
    """A stop that says so after some evaluations."""
    left = iter([None] * calls)
    return lambda: next(left, "enough")


def test_lm_eval_in_a_search_is_lm_eval_on_the_exported_checkpoint(zoo: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'optmerge[lm-eval]'")
    from lm_eval import simple_evaluate

    from optmerge.objective.harness_tasks import HarnessTasks

    path = task_file(tmp_path / "tasks")
    term = {"name": "lm-eval", "tasks": ["tasks/tiny_choice.yaml"], "metric": "brier_score,none", "weight": 2.0}
    settings = zoo_settings(zoo, objective={"terms": [term]}, driver=CMA, budget={"evaluations": 4})
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    made = run(settings, tmp_path)
    assert random.getstate() == before[0]
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])
    records = Trajectory.read(made.folder).records
    judged = [record for record in records if record.split != "report"]
    for record in judged:
        assert record.value == pytest.approx(2.0 * record.parts["lm-eval"])
    assert len({record.parts["lm-eval"] for record in judged}) > 4  # candidates differ, and so do their values

    write_checkpoint(made.folder, tmp_path / "merged")
    config = build_config(settings, root=tmp_path).objective.terms[0]
    absolute = config.model_copy(update={"tasks": [str(path)]})
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "merged"), "dtype": "float32", "device": "cpu"},
        tasks=[str(path)],
        samples=dict(HarnessTasks.load(absolute).positions["select"]),  # type: ignore[arg-type]
        bootstrap_iters=0,
    )
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    assert theirs is not None
    best = records[made.result["best"]["record"]]
    assert best.parts["lm-eval"] == pytest.approx(theirs["results"]["tiny_choice"]["brier_score,none"], abs=1e-6)


def test_lm_eval_chooses_the_best_iterate_of_a_gradient_search(zoo: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'optmerge[lm-eval]'")
    task_file(tmp_path / "tasks")
    term = {"name": "lm-eval", "tasks": ["tasks/tiny_choice.yaml"], "metric": "brier_score,none"}
    objective = {"terms": [{"name": "expert-kl"}], "select": [term]}
    made = run(zoo_settings(zoo, objective=objective, budget={"evaluations": 4}), tmp_path)
    records = Trajectory.read(made.folder).records
    fit = [record for record in records if record.phase == "search"]
    assert all(not record.parts and record.gradient_norm for record in fit)
    select = {record.id: record.parts["lm-eval"] for record in records if record.phase == "select"}
    assert {records[at].value for at in select} == set(select.values())
    assert made.result["best"]["select"] == min(select.values())
    reports = [record for record in records if record.split == "report"]
    assert all(record.value is None and record.parts["lm-eval"] > 0 for record in reports)


def test_a_task_that_changed_is_not_resumed(zoo: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'optmerge[lm-eval]'")
    task_file(tmp_path / "tasks")
    objective = {"terms": [{"name": "lm-eval", "tasks": ["tasks/tiny_choice.yaml"], "limit": 4}]}
    settings = zoo_settings(zoo, objective=objective, driver=CMA)
    with pytest.raises(RunInterrupted):
        run(settings, tmp_path, stop=after(2))
    task_file(tmp_path / "tasks", doc_to_text="w9 {{question}}")
    with pytest.raises(RunError, match="the lm-eval task tiny_choice has changed"):
        resume(tmp_path / "run")


def test_a_gradient_search_by_lm_eval_is_refused(zoo: Path, tmp_path: Path) -> None:
    task_file(tmp_path / "tasks")
    objective = {"terms": [{"name": "lm-eval", "tasks": ["tasks/tiny_choice.yaml"]}]}
    with pytest.raises(ConfigError, match="adam, which needs a gradient, and the objective's term lm-eval has none"):
        build_config(zoo_settings(zoo, objective=objective), root=tmp_path)


def test_terms_of_ones_own_in_a_search(zoo: Path, tmp_path: Path) -> None:
    for name, text in (("constant.py", CONSTANT), ("size.py", SIZE), ("depth.py", DEPTH)):
        (tmp_path / name).write_text(text)
    terms: list[dict[str, Any]] = [
        {"name": "expert-kl"},
        {"name": "custom", "path": "constant.py:Constant", "settings": {"value": 3.0}, "weight": 0.5},
        {"name": "custom", "path": "size.py:Size", "weight": 0.25},
        {"name": "custom", "path": "depth.py:Depth"},
    ]
    made = run(zoo_settings(zoo, objective={"terms": terms}, driver=CMA, budget={"evaluations": 4}), tmp_path)
    searched = [record for record in Trajectory.read(made.folder).records if record.phase == "search"]
    for record in searched:
        assert record.vector is not None
        assert record.parts == pytest.approx({"my-size": record.parts["my-size"], "depth": 2.0})
        kl = sum(part - 1.5 for part in record.per_task.values()) / 2
        assert record.value == pytest.approx(kl + 1.5 + 0.25 * record.parts["my-size"] + (1.0 - 2.0))
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert sorted(manifest["terms"]) == [
        f"custom term {tmp_path}/{name}" for name in ("constant.py:Constant", "depth.py:Depth", "size.py:Size")
    ]


def test_a_file_that_changed_is_not_resumed(zoo: Path, tmp_path: Path) -> None:
    path = tmp_path / "constant.py"
    path.write_text(CONSTANT)
    objective = {"terms": [{"name": "custom", "path": "constant.py:Constant"}]}
    with pytest.raises(RunInterrupted):
        run(zoo_settings(zoo, objective=objective, driver=CMA), tmp_path, stop=after(2))
    path.write_text(CONSTANT + "\n# changed\n")
    with pytest.raises(RunError, match=r"the custom term .*constant\.py:Constant has changed"):
        resume(tmp_path / "run")
    path.write_text(CONSTANT)
    assert resume(tmp_path / "run").result["status"] == "finished"


def test_a_mistake_in_a_coefficient_term_is_told_before_anything_runs(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "size.py").write_text(SIZE.replace("coefficients.abs()", "coefficient.abs()"))
    terms = [{"name": "expert-kl"}, {"name": "custom", "path": "size.py:Size"}]
    told = r"size\.py:Size cannot be computed where the search starts: NameError.*\(size\.py, line 10\)\."
    with pytest.raises(ConfigError, match=told):
        run(zoo_settings(zoo, objective={"terms": terms}), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_only_a_measurement_shows_ends_the_run_in_words(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "depth.py").write_text(DEPTH.replace("float(model.config.num_hidden_layers)", "None"))
    objective = {"terms": [{"name": "custom", "path": "depth.py:Depth"}]}
    with pytest.raises(ConfigError, match="depth gives a NoneType; expected a number"):
        run(zoo_settings(zoo, objective=objective, driver=CMA), tmp_path)
    told = json.loads((tmp_path / "run" / "result.json").read_text())
    assert told["status"] == "failed"
    assert "depth gives a NoneType" in told["reason"]


def test_a_gradient_that_a_term_does_not_have_is_told_before_anything_runs(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "constant.py").write_text(CONSTANT)
    objective = {"terms": [{"name": "custom", "path": "constant.py:Constant"}]}
    with pytest.raises(ConfigError, match="the objective's term constant has none"):
        run(zoo_settings(zoo, objective=objective), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_term_of_the_whole_model_wants_one_model(tmp_path: Path) -> None:
    (tmp_path / "depth.py").write_text(DEPTH)
    zoo = make_zoo(tmp_path, "bert")
    objective = {"terms": [{"name": "custom", "path": "depth.py:Depth"}]}
    with pytest.raises(ConfigError, match=r"depth judges one merged model.*heads: own"):
        run(zoo_settings(zoo, objective=objective, driver=CMA), tmp_path)


def test_a_plan_says_what_it_cannot_time(zoo: Path, tmp_path: Path) -> None:
    from optmerge.runner.plan import make_plan

    (tmp_path / "depth.py").write_text(DEPTH)
    terms = [{"name": "expert-kl"}, {"name": "custom", "path": "depth.py:Depth"}]
    config = build_config(zoo_settings(zoo, objective={"terms": terms}, driver=CMA), root=tmp_path)
    note = "the time of the term depth, which judges the whole model, is not in the estimate"
    assert make_plan(config, root=tmp_path).warnings.count(note) == 1


def test_validate_loads_them(zoo: Path, tmp_path: Path) -> None:
    from optmerge.runner.terms import absolute_terms, check_terms

    settings = zoo_settings(zoo, objective={"terms": [{"name": "custom", "path": "mine.py:Constant"}]}, driver=CMA)
    config = build_config(settings, root=tmp_path)
    with pytest.raises(ConfigError, match=r"no file .*mine\.py"):
        check_terms(absolute_terms(config.objective, tmp_path))
    (tmp_path / "mine.py").write_text(CONSTANT)
    check_terms(absolute_terms(config.objective, tmp_path))
    term = {"name": "lm-eval", "tasks": ["gone.yaml"]}
    config = build_config(zoo_settings(zoo, objective={"terms": [term]}, driver=CMA), root=tmp_path)
    with pytest.raises(ConfigError, match=r"task file .*gone\.yaml, and there is no such file"):
        check_terms(absolute_terms(config.objective, tmp_path))
