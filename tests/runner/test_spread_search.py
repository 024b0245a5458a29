"""A search whose model is spread over two devices finds what it finds on one.

Both "devices" are the CPU here: layout, engines, hooks and workers are those of several devices and the arithmetic is
that of one, so that nothing may differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.cli.tryout import Tryout
from optmerge.config.load import build_config
from optmerge.errors import RunInterrupted
from optmerge.merging.spread_engine import SpreadEngine
from optmerge.records import Candidate, Evaluation
from optmerge.runner import spreading
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.geometry import make_geometry
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.search import resume, search
from optmerge.runner.teachers import Teachers
from tests.tiny import sentences
from tests.zoo import facts, make_zoo, zoo_settings

CPU = torch.device("cpu")
QUICK = {"splits": {"fit": 8, "select": 8, "report": 8}, "baselines": {"grid": [0.3], "method_grid": [1.0]}}
CMA = {**QUICK, "driver": {"name": "cma", "population": 4}, "budget": {"evaluations": 8}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Zoos, each made once."""
    zoos: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in zoos:
            zoos[kind] = make_zoo(tmp_path_factory.mktemp(kind), kind)
            for number, name in enumerate(("one", "two")):
                rows = [{"text": text, "back": text[::-1]} for text in sentences(90, seed=number)]
                (zoos[kind] / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return zoos[kind]

    return make


def settings_of(zoo: Path, kind: str, **changes: Any) -> dict[str, Any]:
    settings = zoo_settings(zoo, **QUICK | changes)
    for task in settings["tasks"].values():
        del task["label"]
        if kind == "t5":
            task["template"] = {"prompt": "w1 {text}", "completion": "{back}"}
    return settings


@pytest.fixture
def spread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on a machine has two devices, and a cache of its own."""

    def use() -> None:
        monkeypatch.setattr(spreading, "_devices", lambda config: [CPU, CPU])

    return use


def evaluated(settings: dict[str, Any], root: Path, form: Any) -> tuple[Problem, Evaluation]:
    """A candidate near the start, with its gradient where the driver wants one."""
    problem = open_problem(build_config(settings, root=root), form=form)
    evaluator = Evaluator(problem, Teachers.make(problem))
    start = problem.space.start
    evaluator.geometry = make_geometry(problem, start)
    problem.objective.set_normalisers("fit", evaluator.measure(np.zeros_like(problem.expand(start)), "fit").means)
    vector = start + np.random.default_rng(1).normal(0.0, 0.05, start.shape)
    needs = {"value", "gradient"} | ({"jacobian"} if settings["driver"]["name"] == "levenberg-marquardt" else set())
    return problem, evaluator.fit(Candidate(vector, needs=frozenset(needs)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "form", "changes"),
    [
        ("llama", "hooks", {"space": {"granularity": "tensor-wise"}}),
        ("llama", "accumulate", {"objective": {"terms": [{"name": "hidden-alignment"}]}, "checkpointing": True}),
        ("llama-tied", "accumulate", {"space": {"granularity": "column-wise"}}),
        ("bert", "hooks", {"directions": ["experts", "regmean++", "fisher"]}),
        (
            "bert",
            "accumulate",
            {
                "driver": {"name": "levenberg-marquardt"},
                "directions": ["experts", "mats"],
                "budget": {"evaluations": 99},
            },
        ),
        ("t5", "accumulate", {}),
    ],
)
def test_an_evaluation_is_that_of_one_device(
    kind: str,
    form: str,
    changes: dict[str, Any],
    made: Callable[[str], Path],
    spread: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(made(kind), kind, **changes)
    whole, expected = evaluated(settings, tmp_path, form)
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "another"))  # teachers and statistics are made again
    spread()
    problem, found = evaluated(settings, tmp_path, form)
    assert isinstance(problem.engine, SpreadEngine)
    assert [bool(shard.parameters) for shard in problem.engine.shards] == [True, True]
    assert expected.error is found.error is None
    assert found.value == expected.value
    assert found.gradient is not None
    assert expected.gradient is not None
    # Of a group with tensors on both devices the sum's order is another.
    np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-12)
    if expected.curvature is not None:
        assert found.curvature is not None
        np.testing.assert_allclose(found.curvature, expected.curvature, rtol=1e-9)
    for name, parameter in whole.resident.parameters.items():
        assert torch.equal(problem.resident.parameters[name], parameter), name


def test_a_search_is_that_of_one_device_with_workers_too(
    made: Callable[[str], Path], spread: Callable[[], None], tmp_path: Path
) -> None:
    settings = settings_of(made("bert"), "bert", **CMA)
    one = facts(search(build_config(settings, root=tmp_path), root=tmp_path / "one").folder)
    spread()
    folder = search(build_config(settings, root=tmp_path), root=tmp_path / "two").folder
    assert facts(folder) == one
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["hardware"]["device"] == "cpu, cpu"
    assert set(manifest["layout"].values()) == {0, 1}
    with_workers = build_config(settings | {"executor": {"workers": 2}}, root=tmp_path)
    assert facts(search(with_workers, root=tmp_path / "three").folder) == one
    answers = list(Tryout.open(folder).answers(["w1 w2 w3"]))
    assert answers
    assert all(answer.probability is not None for answer in answers)


def test_a_resumed_search_has_the_layout_that_it_began_with(
    made: Callable[[str], Path], spread: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spread()
    config = build_config(settings_of(made("bert"), "bert", **CMA), root=tmp_path)
    whole = search(config, root=tmp_path / "whole").folder
    asked = iter([None] * 5)
    with pytest.raises(RunInterrupted):
        search(config, root=tmp_path / "cut", stop=lambda: next(asked, "enough"))
    begun = json.loads((tmp_path / "cut" / "run" / "manifest.json").read_text())["layout"]

    def planned(*_: object, **__: object) -> dict[str, int]:
        raise AssertionError("the layout is that of the manifest")

    monkeypatch.setattr(spreading, "plan_layout", planned)
    assert facts(resume(tmp_path / "cut" / "run").folder) == facts(whole)
    assert json.loads((tmp_path / "cut" / "run" / "manifest.json").read_text())["layout"] == begun
