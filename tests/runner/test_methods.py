"""Searches along whole methods and parts of one: end to end, their statistics, what a run's folder keeps, resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from optmerge import api
from optmerge.cli.tryout import MERGED, Tryout
from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RecipeError, RunInterrupted
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import one_hot
from optmerge.merging.recipe import Recipe
from optmerge.models.cache import cache_dir
from optmerge.models.mapped import SafetensorsFile
from optmerge.records import Trajectory
from optmerge.runner.baselines import CachedMeasurements, make_baselines, representable
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.folder import RunFolder
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.search import Run, resume, search
from optmerge.runner.statistics import ExpertStatistics
from optmerge.runner.teachers import Teachers
from tests.runner.processes import finish_search, start_search, wait_for_records
from tests.zoo import facts, make_zoo, zoo_settings

Settings = Callable[..., dict[str, Any]]
FOUR = ["experts", "tsv-m", "regmean", "ties"]


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def winner(made: Run) -> dict[str, torch.Tensor]:
    """The resident model at the run's best vector, by the base's names on disk."""
    problem = open_problem(RunFolder.open(made.folder).config())
    trajectory = Trajectory.read(made.folder)
    best = trajectory.records[made.result["best"]["record"]].vector
    assert best is not None
    problem.engine.apply(problem.expand(best))
    return {
        disk: problem.resident.parameters[name].data
        for name in problem.family.parameters
        for disk in problem.family.disk_names(name)
    }


def equal(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return set(ours) == set(expected) and all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A search over task vectors and three whole methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        zoo = make_zoo(tmp_path_factory.mktemp("zoo"), "bert")
        return run(zoo_settings(zoo, directions=FOUR), tmp_path_factory.mktemp("root"))


def test_methods_are_searched_beside_task_vectors(four: Run) -> None:
    recipe = Recipe.load(four.folder / "recipe.yaml")
    assert [(each.name, each.kind) for each in recipe.directions] == [
        ("a", "expert"),
        ("b", "expert"),
        ("tsv-m", "method"),
        ("regmean", "method"),
        ("ties", "method"),
    ]
    assert recipe.coefficients.all()
    rows = {row["name"] for row in four.result["rows"]}
    assert {"method:tsv-m:1", "method:regmean:1", "method:ties:1"} <= rows
    searched = [record for record in Trajectory.read(four.folder).records if record.phase == "search"]
    assert all(record.error is None for record in searched)
    manifest = json.loads((four.folder / "manifest.json").read_text())
    assert manifest["hardware"]["kernels"] in ("compiled", "torch")


def test_the_recipe_is_the_searched_model_bit_for_bit(four: Run, tmp_path: Path) -> None:
    """Read again from the run's folder, which has moved, with no cache."""
    expected = winner(four)
    moved = tmp_path / "moved"
    shutil.copytree(four.folder, moved)
    assert equal(api.merge(moved), expected)  # type: ignore[arg-type]
    checkpoint = api.export(moved, "checkpoint", tmp_path / "checkpoint")
    assert equal(api.merge(checkpoint / "recipe.yaml"), expected)  # type: ignore[arg-type]
    tryout = Tryout.open(moved)
    tryout.engine.apply(tryout.tables[MERGED])
    for name, parameter in tryout.resident.parameters.items():
        assert torch.equal(parameter.data, expected[tryout.family.disk_names(name)[0]])


def test_without_its_file_the_recipe_says_so(four: Run, tmp_path: Path) -> None:
    shutil.copy(four.folder / "recipe.yaml", tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"regmean was computed from calibration data.*is not there"):
        api.merge(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("method", ["dare", "ties-split", {"name": "tsv-m", "others": "base"}, "led"])
def test_parts_of_a_method_are_searched(settings: Settings, tmp_path: Path, method: str | dict[str, str]) -> None:
    made = run(settings(method=method), tmp_path)
    name = method if isinstance(method, str) else method["name"]
    recipe = Recipe.load(made.folder / "recipe.yaml")
    assert [(each.name, each.kind, each.expert) for each in recipe.directions] == [
        (f"{name}:a", "part", "a"),
        (f"{name}:b", "part", "b"),
    ]
    assert recipe.method == name
    rows = {row["name"]: row for row in made.result["rows"]}
    assert {"expert:a", "uniform:0.3", f"parts:{name}:0.3", f"parts:{name}:0.6"} <= set(rows)
    assert rows[f"parts:{name}:0.3"]["select"] != rows[f"parts:{name}:0.6"]["select"] != rows["uniform:0.6"]["select"]
    problem = open_problem(RunFolder.open(made.folder).config())
    able = {baseline.name for baseline in make_baselines(problem) if representable(problem, baseline)}
    assert able == {"base", f"parts:{name}:0.3", f"parts:{name}:0.6"}  # what the search can start from
    assert equal(api.merge(made.folder), winner(made))  # type: ignore[arg-type]


def test_one_part_of_two_is_another_measurement(settings: Settings, tmp_path: Path) -> None:
    """Cached measurements tell parts of one method apart."""
    problem = open_problem(build_config(settings(method="dare"), root=tmp_path))
    measurements = CachedMeasurements(Evaluator(problem, Teachers.make(problem)))
    keys = set()
    for column in range(len(problem.directions)):
        table = make_baselines(problem)[0].table
        table[:, column] = 0.5
        keys.add(measurements._key(table, "select", True, False))
    assert len(keys) == len(problem.directions) == 4


def test_baselines_of_other_fit_data_are_not_shared_where_they_depend_on_it(settings: Settings, tmp_path: Path) -> None:
    rows = []
    for fit in (24, 6):
        made = run(
            settings(
                directions=["experts"],
                baselines={"grid": [0.3], "method_grid": [1.0], "methods": ["regmean", "iso-c"]},
                splits={"fit": fit, "select": 16, "report": 30},
                budget={"evaluations": 1},
                output=f"run-{fit}",
            ),
            tmp_path,
        )
        rows.append({row["name"]: row["select"] for row in made.result["rows"]})
        assert not (made.folder / "directions").exists()  # a baseline is no part of the recipe
    assert rows[0]["method:iso-c:1"] == rows[1]["method:iso-c:1"]
    assert rows[0]["method:regmean:1"] != rows[1]["method:regmean:1"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("gpt2"), "gpt2")


def open_gpt2(zoo: Path, **changes: Any) -> Problem:
    settings = zoo_settings(zoo, directions=["regmean"], **changes)
    for task in settings["tasks"].values():
        del task["label"]
    return open_problem(build_config(settings, root=zoo))


def test_regmean_of_gpt2_is_the_solution_by_hand(gpt2: Path) -> None:
    """Conv1D has its weights the other way round: W = (sum G_i)^-1 sum G_i W_i, and not its transpose."""
    problem = open_gpt2(gpt2, batch_tokens=32)
    weights: dict[str, list[torch.Tensor]] = {}
    grams: dict[str, list[torch.Tensor]] = {}
    names = [name for name in problem.family.parameters if ".c_" in name and name.endswith("weight")]
    assert len(names) == 2 * 4
    for expert, folder in (("a", "one"), ("b", "two")):
        model = AutoModelForCausalLM.from_pretrained(gpt2 / folder).eval()
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for name in names:
            layer = model.get_submodule(name.removesuffix(".weight"))
            layer.register_forward_hook(lambda _, inputs, __, rows=seen[name]: rows.append(inputs[0][0]))
        split = problem.calibration.tasks[expert].splits["fit"]
        assert split.size == 24
        for position in range(split.size):  # one at a time, so that there is no padding
            (batch,) = split.batches(batch_tokens=1, positions=[position])
            with torch.no_grad():
                model(input_ids=batch.inputs["input_ids"])
        for name in names:
            rows = torch.cat(seen[name]).double()
            gram = rows.mT @ rows / len(rows)
            shrunk = 0.9 * gram + 0.1 * torch.diag(gram.diagonal())
            grams.setdefault(name, []).append(shrunk)
            weights.setdefault(name, []).append(shrunk @ dict(model.named_parameters())[name].data.double())
    problem.engine.apply(one_hot(len(problem.space.groups), len(problem.directions), problem.column("regmean")))
    for name in names:
        expected = torch.linalg.solve(sum(grams[name]), sum(weights[name]))
        found = problem.resident.parameters[name].data.double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        mean = (problem.family.read("a", name) + problem.family.read("b", name)) / 2
        assert float((found - mean).abs().max()) > 0.02  # it is not the mean


def test_statistics_are_cached_by_content_and_see_only_fit_inputs(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def opened(**changes: Any) -> int:
        told.clear()
        settings = zoo_settings(gpt2, directions=["experts", "regmean"], **changes)
        for task in settings["tasks"].values():
            del task["label"]
        open_problem(build_config(settings, root=gpt2), progress=lambda stage, *_: told.append(stage))
        return len(list((cache_dir() / "statistics").iterdir()))

    assert opened() == 2  # one folder per expert
    assert told[:2] == ["statistics", "statistics"]
    assert set(told[2:]) == {"regmean"}
    assert opened() == 2
    assert told == []
    assert opened(space={"granularity": "task-wise"}, seed=5) == 2
    assert opened(splits={"fit": 12, "select": 16, "report": 30}) == 4
    shutil.rmtree(cache_dir() / "directions")
    monkeypatch.setattr(ExpertStatistics, "_measured", lambda *_: pytest.fail("they are in the cache"))
    assert opened() == 4
    assert "regmean" in told


def test_statistics_do_not_depend_on_padding(gpt2: Path) -> None:
    """Another micro-batch pads otherwise, and its sums are in another order."""
    grams = []
    for batch_tokens in (16, 4096):
        problem = open_gpt2(gpt2, batch_tokens=batch_tokens)
        statistics = ExpertStatistics(
            problem.config, problem.family, problem.calibration, device=problem.device, dtype=problem.dtype
        )
        statistics.collect({"grams"}, problem.resident)
        grams.append([statistics.statistic("grams", "a", name) for name in problem.family.parameters])
    assert sum(gram is not None for gram in grams[0]) == 2 * 4
    for few, many in zip(*grams, strict=True):
        assert (few is None) == (many is None)
        if few is not None and many is not None:
            torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-5)


def test_interrupted_with_an_empty_cache_it_goes_on_the_same(settings: Settings, tmp_path: Path) -> None:
    wanted = settings(directions=["experts", "regmean"], driver={"name": "cma", "population": 4})
    whole = run(wanted, tmp_path / "whole")
    calls = iter(range(10**6))
    with pytest.raises(RunInterrupted):
        run(wanted, tmp_path / "cut", stop=lambda: "made to stop" if next(calls) == 11 else None)
    shutil.rmtree(cache_dir())
    again = resume(tmp_path / "cut" / "run")
    assert facts(again.folder) == facts(whole.folder)
    assert (again.folder / "recipe.yaml").read_text() == (whole.folder / "recipe.yaml").read_text()
    assert equal(api.merge(again.folder), api.merge(whole.folder))  # type: ignore[arg-type]


def test_sigkill_while_directions_are_made_and_while_searching(settings: Settings, tmp_path: Path) -> None:
    wanted = settings(
        directions=["experts", "regmean"], driver={"name": "cma", "population": 4}, budget={"evaluations": 24}
    )
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    killed = 0
    for early in (True, False, False):  # the cache is empty, so the first is killed at work on statistics or later
        process = start_search(wanted, tmp_path / "killed")
        folder = tmp_path / "killed" / "run"
        if early:
            while process.is_alive() and not (cache_dir() / "statistics").is_dir():
                time.sleep(0.001)
        else:
            done = len(Trajectory.read(folder).records) if (folder / "trajectory.jsonl").exists() else 0
            wait_for_records(folder, done + 8, process)
        if process.is_alive():  # on a loaded machine the last of them may come too late
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed >= 2
    finish_search(wanted, tmp_path / "killed")
    finish_search(wanted, tmp_path / "whole")
    assert facts(tmp_path / "killed" / "run") == facts(tmp_path / "whole" / "run")
    recipes = [(tmp_path / name / "run" / "recipe.yaml").read_text() for name in ("killed", "whole")]
    assert recipes[0] == recipes[1]


def test_plan_knows_methods_and_parts_and_reads_no_weights(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SafetensorsFile, "read", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.setattr(Deltas, "prepare", lambda *_: pytest.fail("a delta was computed"))
    config = build_config(
        settings(method="tsv-m", directions=["experts", "regmean", {"name": "ties", "density": 0.5}, "ties"]),
        root=tmp_path,
    )
    plan = make_plan(config, root=tmp_path)
    assert plan.directions == ("tsv-m:a", "tsv-m:b", "regmean", "ties", "ties[density=0.2]")
    assert plan.baselines == 2 + 2 + 2 * len((0.3, 0.6)) + 3  # and 3 methods at one scale each
    three = settings(directions=["slerp"])
    three["experts"]["c"] = three["experts"]["a"]
    config = build_config(three, root=tmp_path)
    with pytest.raises(ConfigError, match="slerp is between two models"):
        make_plan(config, root=tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"directions": ["experts", "regmean"]}, r"directions: regmean needs inputs .* expert b\. Add one \(tasks\.b"),
        ({"baselines": {"methods": [{"name": "regmean"}]}}, r"baselines\.methods: regmean needs inputs"),
    ],
)
def test_an_expert_without_inputs_is_named(settings: Settings, changes: dict[str, Any], said: str) -> None:
    wanted = settings(**changes)
    del wanted["tasks"]["b"]
    with pytest.raises(ConfigError, match=said):
        build_config(wanted, root=Path())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"method": "ties"},
            r"method: ties is not a sum .*task_arithmetic, dare, ties-split, tsv-m.*directions: \[experts, ties\]",
        ),
        ({"method": {"name": "dare", "weights": {"a": 1}}}, r"method: the weights of dare are what is searched"),
        (
            {"directions": [{"name": "linear", "weights": {"c": 1}}]},
            r"directions: linear has a weight for 'c'; expected the experts a, b",
        ),
    ],
)
def test_methods_that_cannot_be_searched_so_are_refused(settings: Settings, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config(settings(**changes), root=Path())
