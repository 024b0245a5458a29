"""A search that starts from a recipe: a search's own, an import's, one by hand; exact, projected, or refused."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from optmerge.config.load import build_config
from optmerge.errors import RecipeError, RunError, RunInterrupted
from optmerge.importers.adamerging import recipe_from_adamerging
from optmerge.importers.mergekit import recipe_from_mergekit
from optmerge.merging.slices import Chunks, Columns
from optmerge.records import Trajectory
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import resume, search
from optmerge.runner.warm_start import _by_other_slices
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]


def written(path: Path, settings: dict[str, Any], **body: Any) -> Path:
    """A recipe by hand, over the models of ``settings`` but under other names."""
    experts = {"first": settings["experts"]["a"], "second": settings["experts"]["b"]}
    path.write_text(yaml.safe_dump({"optmerge_recipe": 1, "base": settings["base"], "experts": experts} | body))
    return path


def opened(settings: dict[str, Any], root: Path) -> Problem:
    return open_problem(absolute_references(build_config(settings, root=root), root))


def first_search(folder: Path) -> Any:
    return next(record for record in Trajectory.read(folder).records if record.phase == "search")


@pytest.mark.parametrize("driver", ["adam", "cma", "optuna"])
def test_the_first_candidate_is_the_recipe(settings: Settings, tmp_path: Path, driver: str) -> None:
    recipe = written(tmp_path / "start.yaml", settings(), coefficients={"second": 0.7, "first": 0.2})
    made = settings(
        space={"granularity": "layer-wise", "start": recipe.name}, driver={"name": driver}, budget={"evaluations": 2}
    )
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    names = [record.name for record in Trajectory.read(run.folder).records if record.phase == "baseline"]
    assert names.count("recipe") == 2  # on select and on report
    first = first_search(run.folder).vector.reshape(-1, 2)
    assert np.unique(first, axis=0).tolist() == [[0.2, 0.7]]
    assert {row["family"] for row in run.result["rows"]} >= {"recipe", "search"}


def test_a_searchs_own_recipe_goes_on_elsewhere(settings: Settings, tmp_path: Path) -> None:
    run = search(build_config(settings(output="one", budget={"evaluations": 2}), root=tmp_path), root=tmp_path)
    assert run.recipe is not None
    fine = {"granularity": "tensor-wise", "start": "one/recipe.yaml"}
    made = settings(output="two", space=fine, budget={"evaluations": 1})
    again = search(build_config(made, root=tmp_path), root=tmp_path)
    best = next(row["select"] for row in run.result["rows"] if row["kind"] == "search")
    start = next(row["select"] for row in again.result["rows"] if row["name"] == "recipe")
    assert start == pytest.approx(best, abs=1e-12)
    assert again.recipe is not None
    plan, plain = (
        make_plan(build_config(settings(space=space), root=tmp_path), root=tmp_path)
        for space in (fine, fine | {"start": 0.3})
    )
    assert plan.baselines == plain.baselines + 1


def test_a_coarser_space_takes_means_over_elements(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = opened(settings(), tmp_path).family
    tensors = {name: list(found.disk_names(name)) for name in found.parameters}
    some = list(tensors)[:3]
    groups = [
        {"name": name, "tensors": tensors[name], "coefficients": {"first": 0.1 * n, "second": 0.5}}
        for n, name in enumerate(some)
    ] + [{"name": "rest", "tensors": "*", "coefficients": {"first": 1.0, "second": 0.5}}]
    recipe = written(tmp_path / "start.yaml", settings(), groups=groups)
    with caplog.at_level(logging.WARNING):
        problem = opened(settings(space={"granularity": "task-wise", "start": recipe.name}), tmp_path)
    assert problem.warm_start is not None
    sizes = {name: parameter.numel for name, parameter in found.parameters.items()}
    wanted = sum(size * (0.1 * some.index(name) if name in some else 1.0) for name, size in sizes.items())
    assert problem.warm_start[0] == pytest.approx([wanted / sum(sizes.values()), 0.5])
    assert "cannot say what" in caplog.text
    assert "1 of its 1 groups" in caplog.text


def test_bounds_and_frozen_groups_have_their_say(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = written(tmp_path / "start.yaml", settings(), coefficients={"first": 1.5, "second": 0.5})
    space = {
        "granularity": "layer-wise",
        "bounds": [0.0, 1.0],
        "start": recipe.name,
        "rules": [{"match": "embedding", "freeze": 0.0}],
    }
    problem = opened(settings(space=space), tmp_path)
    assert problem.warm_start is not None
    kinds = [group.name for group in problem.space.groups]
    assert problem.warm_start[kinds.index("embedding")].tolist() == [0.0, 0.0]
    assert problem.warm_start[kinds.index("layer.0")].tolist() == [1.0, 0.5]
    assert "up to 1.5 off (in embedding)" in caplog.text


def test_slices_of_one_kind_as_those_of_another() -> None:
    columns, chunks = Columns(matrices=1, rows=4, width=3), Chunks((0, 6, 12))
    values = np.array([[0.0], [1.0], [2.0]])
    mean, off = _by_other_slices(values, columns, chunks)
    assert mean.tolist() == [[1.0], [1.0]]
    assert off.tolist() == [[1.0], [1.0]]
    back, _ = _by_other_slices(np.array([[0.0], [3.0]]), chunks, columns)
    assert back.tolist() == [[1.5], [1.5], [1.5]]


def test_sliced_recipes(settings: Settings, tmp_path: Path) -> None:
    columns = {"granularity": "column-wise"}
    run = search(
        build_config(settings(output="one", space=columns, budget={"evaluations": 2}), root=tmp_path), root=tmp_path
    )
    assert run.recipe is not None
    same = opened(settings(space=columns | {"start": "one/recipe.yaml"}), tmp_path)
    assert same.warm_start is not None
    assert np.array_equal(same.warm_start, run.recipe.coefficients)
    coarse = opened(settings(space={"granularity": "tensor-wise", "start": "one/recipe.yaml"}), tmp_path)
    assert coarse.warm_start is not None
    group = next(n for n, group in enumerate(coarse.space.groups) if run.recipe.groups[n].cut is not None)
    mean = run.recipe.coefficients[run.recipe.rows[group]].mean(axis=0)
    assert coarse.warm_start[group] == pytest.approx(mean)


def test_chosen_methods(settings: Settings, tmp_path: Path) -> None:
    dare = {"name": "dare", "drop": 0.5}
    body = {
        "directions": [{"expert": "first", "method": dare}, {"expert": "second", "method": dare}],
        "coefficients": {"dare:first": 0.3, "dare:second": 0.4},
    }
    recipe = written(tmp_path / "start.yaml", settings(), **body)
    choice = {"methods": ["task_arithmetic", {"name": "dare", "drop": [0.2, 0.5]}], "driver": {"name": "cma"}}
    space = {"granularity": "task-wise", "start": recipe.name}
    made = settings(space=space, budget={"evaluations": 1}, **choice)
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    vector = first_search(run.folder).vector
    assert vector.tolist()[:2] == [0.3, 0.4]
    assert opened(settings(space=space, **choice), tmp_path).space.method_at(vector) == "dare"
    with pytest.raises(RecipeError, match=re.escape("Write `method: {name: dare}`")):
        opened(settings(space=space), tmp_path)


def test_parts_of_methods_that_see_all_experts_want_the_same_ones(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = settings(space={"granularity": "task-wise", "start": "start.yaml"})
    two = dict(made["experts"])
    three = two | {"c": str(shutil.copytree(two["b"], tmp_path / "three"))}

    def start(name: str, experts: dict[str, str]) -> Problem:
        method = {"name": name, "weights": {"first": 1.0, "second": 1.0}}
        written(
            tmp_path / "start.yaml",
            made,
            directions=[{"expert": "first", "method": method}],
            coefficients={f"{name}:first": 0.3},
        )
        return opened(made | {"experts": experts, "method": {"name": name}}, tmp_path)

    for joint in ("tsv-m", "star"):  # star's norms and biases are a mean over all experts
        with pytest.raises(RecipeError, match="with c beside them they are others"):
            start(joint, three)
    problem = start("dare", three)  # each expert's part is its own
    assert problem.warm_start is not None
    assert problem.warm_start[problem.warm_start != 0].tolist() == [0.3]
    assert "what dare drops goes by the experts' names" in caplog.text
    caplog.clear()
    start("tsv-m", dict(reversed(two.items())))
    assert "has the experts in another order" in caplog.text


def test_a_translated_merge(language_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = language_settings()
    zoo = Path(made["base"]).parent
    monkeypatch.chdir(zoo)
    merge = tmp_path / "merge.yml"
    ties = {"density": 0.5, "weight": 0.5}
    for method, parameters in (("task_arithmetic", {"weight": [0.2, 0.8]}), ("ties", ties)):
        models = [{"model": name, "parameters": parameters} for name in ("one", "two")]
        merge.write_text(yaml.safe_dump({"merge_method": method, "base_model": "base", "models": models}))
        text = recipe_from_mergekit(merge, to=zoo / f"{method}.yaml").text
        (zoo / f"{method}.yaml").write_text(text)
    start = str(zoo / "task_arithmetic.yaml")
    problem = opened(made | {"space": {"granularity": "layer-wise", "start": start}}, tmp_path)
    assert problem.warm_start is not None
    names = [group.name for group in problem.space.groups]
    layers = [problem.warm_start[names.index(f"layer.{number}")].tolist() for number in (0, 1)]
    assert layers == [[0.2, 0.2], [0.8, 0.8]]
    whole = made | {"space": {"granularity": "layer-wise", "start": str(zoo / "ties.yaml")}}
    with pytest.raises(RecipeError, match=r"has coefficients of ties, the method .*Write `directions: ") as refused:
        opened(whole, tmp_path)
    hint = re.search(r"Write `(.*?)` into", str(refused.value))
    assert hint is not None
    added = yaml.safe_load(hint[1])["directions"]
    problem = opened(whole | {"directions": ["experts", *added]}, tmp_path)
    assert problem.warm_start is not None
    assert problem.warm_start[0].tolist() == [0.0, 0.0, 1.0]


def test_adamergings_coefficients(settings: Settings, tmp_path: Path) -> None:
    made = settings(space={"granularity": "tensor-wise", "start": "recipe.yaml"})
    count = len(opened(settings(), tmp_path).family.parameters)
    table = torch.linspace(0.1, 0.9, 2 * count).reshape(count, 2)
    torch.save(table, tmp_path / "weights.pt")
    experts = {"cars": made["experts"]["a"], "dtd": made["experts"]["b"]}
    to = tmp_path / "recipe.yaml"
    to.write_text(recipe_from_adamerging(tmp_path / "weights.pt", base=made["base"], experts=experts, to=to).text)
    problem = opened(made, tmp_path)
    assert problem.warm_start is not None
    untouched = problem.deltas.untouched()
    for row, group in enumerate(problem.space.groups):
        for column, name in enumerate(("a", "b")):
            if group.name not in untouched[name]:
                assert problem.warm_start[row, column] == pytest.approx(float(table[row, column]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "{two}"}, "adds to the base"),
        ({"experts": {"first": "{base}"}, "coefficients": {"first": 1.0}}, "expert first .* none of this search's"),
        ({"coefficients": {"third": 1.0}}, "third"),
        ({"heads": "merged"}, "Write `heads: merged`"),
        (
            {"directions": ["experts", "iso-c"], "coefficients": {"first": 0.1, "second": 0.1, "iso-c": 1.0}},
            r"Write `directions: \[\{name: iso-c\}\]`",
        ),
    ],
)
def test_what_cannot_be_a_start(settings: Settings, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    made = settings()
    places = {"{two}": made["experts"]["b"], "{base}": made["base"]}
    body: dict[str, Any] = {"coefficients": {"first": 0.2, "second": 0.7}} | changes
    text = yaml.safe_dump(body)
    for name, place in places.items():
        text = text.replace(f"'{name}'", place)
    recipe = written(tmp_path / "start.yaml", made, **yaml.safe_load(text))
    config = build_config(settings(space={"granularity": "layer-wise", "start": recipe.name}), root=tmp_path)
    with pytest.raises(RecipeError, match=message):
        search(config, root=tmp_path)
    assert not (tmp_path / "run").exists()


def test_resuming_is_exact_and_wants_the_same_recipe(settings: Settings, tmp_path: Path) -> None:
    recipe = written(tmp_path / "start.yaml", settings(), coefficients={"first": 0.2, "second": 0.7})
    space = {"granularity": "layer-wise", "start": recipe.name}
    short = {"evaluations": 3}
    whole = search(build_config(settings(space=space, output="whole", budget=short), root=tmp_path), root=tmp_path)
    asked = iter([None] * 7)
    with pytest.raises(RunInterrupted):
        search(
            build_config(settings(space=space, output="part", budget=short), root=tmp_path),
            root=tmp_path,
            stop=lambda: next(asked, "enough"),
        )
    text = recipe.read_text()
    recipe.write_text(text.replace("0.7", "0.6"))
    with pytest.raises(RunError, match="the recipe that the search starts from has changed"):
        resume(tmp_path / "part")
    recipe.write_text(text)
    resume(tmp_path / "part")
    assert facts(tmp_path / "part") == facts(whole.folder)
