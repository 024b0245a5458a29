"""Searches along a method of the user's own, as docs/own-method.md shows it: every driver, resume, exports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from optmerge import api
from optmerge.config.load import build_config
from optmerge.config.methods import CustomMethodConfig
from optmerge.config.reading import read_yaml
from optmerge.errors import ConfigError, ExportError, RunError, RunInterrupted
from optmerge.merging.recipe import Recipe
from optmerge.records import Trajectory
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.folder import RunFolder
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import Run, resume, search
from optmerge.runner.teachers import Teachers
from tests.merging.methods.test_own import GUIDE, HEAD, LARGEST, guide_example

Settings = Callable[..., dict[str, Any]]
OWN = {"name": "custom", "path": "my_methods.py:Shrunk", "settings": {"share": 1.0}}
CMA = {"name": "cma", "population": 4}
DRIVERS = [
    {"name": "adam", "lr": 0.05},
    {"name": "levenberg-marquardt"},
    CMA,
    {"name": "optuna", "startup": 4},
    {"name": "natural-niches", "mutation": 0.3},
]
QUICK = {"limit": 8, "budget": {"evaluations": 12}}
YAML = [text.partition("```")[0] for text in GUIDE.read_text().split("```yaml\n")[1:]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the guide's file, and one whose method is no sum of parts."""
    (tmp_path / "my_methods.py").write_text(guide_example())
    (tmp_path / "wholes.py").write_text(HEAD + LARGEST.format(sees="entries"))
    return tmp_path


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def shrunk(models: dict[str, dict[str, torch.Tensor]], name: str, expert: str, share: float) -> torch.Tensor:
    """The guide's method, written once more."""
    vector = models[expert][name] - models["base"][name]
    return torch.nn.functional.softshrink(vector, share * float(vector.abs().mean()))


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver["name"])
def test_every_driver_searches_along_its_parts(settings: Settings, root: Path, driver: dict[str, Any]) -> None:
    space = {"granularity": "task-wise"}
    made = run(settings(method=OWN, driver=driver, space=space, **QUICK), root)
    records = Trajectory.read(made.folder).records
    assert not any(record.error for record in records)
    assert {"parts:Shrunk:0.3", "parts:Shrunk:0.6"} <= {row["name"] for row in made.result["rows"]}
    recipe = Recipe.load(made.folder / "recipe.yaml")
    assert [(one.name, one.kind, one.expert) for one in recipe.directions] == [
        ("Shrunk:a", "part", "a"),
        ("Shrunk:b", "part", "b"),
    ]
    problem = open_problem(RunFolder.open(made.folder).config())
    best = records[made.result["best"]["record"]].vector
    assert best is not None
    problem.engine.apply(problem.expand(best))
    models = {
        who: {name: problem.family.read(who, name).float() for name in problem.family.parameters}
        for who in ("base", "a", "b")
    }
    merged = api.merge(made.folder)
    for name, parameter in problem.resident.parameters.items():
        (disk,) = problem.family.disk_names(name)
        assert torch.equal(merged[disk], parameter.data)
        expected = models["base"][name].clone()
        for coefficient, expert in zip(best.tolist(), ("a", "b"), strict=True):
            expected += coefficient * shrunk(models, name, expert, 1.0)
        torch.testing.assert_close(merged[disk], expected, rtol=1e-5, atol=1e-6)


def test_the_whole_of_it_is_a_direction_and_a_baseline(settings: Settings, root: Path) -> None:
    whole = {"name": "custom", "path": "wholes.py:Largest"}
    twice = {**whole, "settings": {"factor": -1.0}}
    made = run(settings(directions=["experts", whole, OWN], baselines={"methods": [twice]}, **QUICK), root)
    recipe = Recipe.load(made.folder / "recipe.yaml")
    assert [one.name for one in recipe.directions] == ["a", "b", "Largest", "Shrunk"]
    rows = {row["name"] for row in made.result["rows"]}
    assert {"method:Largest:1", "method:Shrunk:1", "method:Largest[factor=-1.0]:1"} <= rows


@pytest.mark.parametrize("driver", DRIVERS[2:])
@pytest.mark.parametrize("as_whole", [False, True], ids=["parts", "whole"])
def test_it_is_one_of_several_and_its_settings_are_chosen(
    settings: Settings, root: Path, driver: dict[str, Any], as_whole: bool
) -> None:
    searched = {**OWN, "settings": {"share": "searched"}}
    among = {"methods": ["task_arithmetic", searched]}
    changes: dict[str, Any] = among if not as_whole else {"directions": ["experts", {"name": "one-of", **among}]}
    made = run(settings(**changes, driver=driver, space={"granularity": "task-wise"}, **QUICK), root)
    problem = open_problem(RunFolder.open(made.folder).config())
    assert list(problem.space.names)[-2:] == ["method", "custom.Shrunk.share"]
    assert problem.space.upper[-2:].tolist() == [1.0, 2.0]  # two methods, three values
    shares = set()
    for record in Trajectory.read(made.folder).records:
        if record.phase != "search" or record.vector is None or not record.vector[-2]:
            continue
        recipe = problem.recipe(record.vector, {})
        config = recipe.directions[-1].config
        assert isinstance(config, CustomMethodConfig)
        assert config.settings == {"share": [0.0, 0.5, 1.0][int(record.vector[-1])]}
        assert Recipe.from_yaml(recipe.to_yaml(), root / "recipe.yaml").directions == recipe.directions
        shares.add(config.settings["share"])
    assert shares


def test_a_gradient_is_that_of_finite_differences(settings: Settings, root: Path) -> None:
    objective = {"terms": [{"name": "expert-kl", "normalise": "none"}]}
    space = {"granularity": "task-wise"}
    made = settings(method=OWN, directions=["experts", "ties"], space=space, objective=objective, limit=8)
    config = build_config(made, root=root)
    problem = open_problem(absolute_references(config, root))
    evaluator = Evaluator(problem, Teachers.make(problem))
    at = np.array([0.4, 0.3, 0.2])
    found = evaluator.evaluate(at, "fit", gradient=True)
    assert found.gradient is not None
    for number, slope in enumerate(found.gradient):
        step = 1e-2 * np.eye(3)[number]
        ends = [evaluator.evaluate(at + sign * step, "fit").value for sign in (1, -1)]
        assert ends[0] is not None
        assert ends[1] is not None
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02, abs=1e-4)


def test_another_file_is_not_resumed_and_not_merged(settings: Settings, root: Path) -> None:
    left = iter([None] * 8)
    away = {"granularity": "task-wise", "start": 0.5, "bounds": [0.2, 1.0]}  # the method has a part in every merge
    with pytest.raises(RunInterrupted):
        run(settings(method=OWN, space=away, limit=8), root, stop=lambda: next(left, "enough"))
    path = root / "my_methods.py"
    source = path.read_text()
    path.write_text(source.replace("clamp(min=0)", "clamp(min=0.001)"))
    with pytest.raises(RunError, match=r"the custom method .*my_methods\.py:Shrunk has changed"):
        resume(root / "run")
    path.write_text(source)
    made = resume(root / "run")
    assert made.result["status"] == "finished"
    path.write_text(source + "# another\n")
    with pytest.raises(ConfigError, match="is not the file that the recipe was made with"):
        api.merge(made.folder)


def test_it_exports_but_for_mergekit(settings: Settings, root: Path) -> None:
    away = {"granularity": "task-wise", "start": 0.5, "bounds": [0.2, 1.0]}
    made = run(settings(method=OWN, space=away, **QUICK), root)
    merged = api.merge(made.folder)
    checkpoint = api.export(made.folder, "checkpoint", root / "checkpoint")
    again = api.merge(checkpoint / "recipe.yaml")
    assert all(torch.equal(again[name], merged[name]) for name in merged)
    table = api.export(made.folder, "coefficients", root / "coefficients.json")
    assert "Shrunk:a" in table.read_text()
    with pytest.raises(ExportError, match=r"Shrunk:a is the delta of a method"):
        api.export(made.folder, "mergekit", root / "mergekit.yml")


def test_a_recipe_by_hand_finds_the_file_beside_it(settings: Settings, root: Path) -> None:
    content = settings()
    folder = root / "recipes"
    folder.mkdir()
    shutil.copy(root / "my_methods.py", folder / "mine.py")
    method = {"name": "custom", "path": "mine.py:Shrunk"}
    recipe = {
        "optmerge_recipe": 1,
        "base": content["base"],
        "experts": content["experts"],
        "directions": [{"expert": "a", "method": method}, {"method": method}],
        "coefficients": {"Shrunk:a": 0.5, "Shrunk": 0.2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert api.merge(folder / "recipe.yaml")
    del recipe["coefficients"]["Shrunk"]
    recipe["directions"] = [{"expert": "a", "method": {"name": "custom", "path": "../wholes.py:Largest"}}]
    recipe["coefficients"] = {"Largest:a": 0.5}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match="Largest is a WholeMethod, so it has no parts to scale"):
        api.merge(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "custom", "path": "wholes.py:Largest"}}, "Largest is a WholeMethod.*directions: "),
        ({"method": {"name": "custom", "path": "gone.py:Shrunk"}}, r"no file .*gone\.py for the custom method"),
        ({"directions": ["experts", OWN, OWN]}, "Shrunk appears more than once with the same settings"),
        ({"experts": "Shrunk", "directions": [OWN]}, r"experts\.Shrunk: an expert is called like the method Shrunk"),
        (
            {"methods": [{**OWN, "settings": {"share": "searched"}}], "driver": "adam"},
            "a choice among methods has none",
        ),
        ({"methods": ["dare", {**OWN, "settings": {"shre": "searched"}}]}, r"shre is searched.*those that do: share"),
        (
            {"methods": ["dare", {"name": "custom", "path": "wholes.py:Largest", "settings": {"factor": "searched"}}]},
            "factor is searched, and it does not say over which values.*none of its settings does",
        ),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_runs(
    settings: Settings, root: Path, changes: dict[str, Any], words: str
) -> None:
    made = settings(**{"driver": CMA} | changes)
    if changes.get("experts") == "Shrunk":
        base = settings()
        made["experts"] = {"Shrunk": base["experts"]["a"]}
        made["tasks"] = {"a": {**base["tasks"]["a"], "expert": "Shrunk"}}
    with pytest.raises(ConfigError, match=words):
        make_plan(build_config(made, root=root), root=root)


@pytest.mark.parametrize("text", YAML, ids=["method", "methods"])
def test_the_guides_files_are_valid(settings: Settings, root: Path, text: str) -> None:
    content = read_yaml(text, source="docs/own-method.md")
    assert isinstance(content, dict)
    assert make_plan(build_config(settings(**content), root=root), root=root).dimension
