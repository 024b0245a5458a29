"""What statistics cost: passes by kind and classes, bytes by shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optmerge.config.load import build_config
from optmerge.config.methods import MatsConfig, Need, SensConfig
from optmerge.merging import statistics
from optmerge.merging.directions import expand_directions
from optmerge.runner import statistics_cost
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.statistics_cost import needs_of, statistics_bytes, statistics_passes
from tests.zoo import zoo_settings

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def problems(zoo: Path, language_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Problem]:
    language = zoo_settings(language_zoo)
    for task in language["tasks"].values():
        del task["label"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {
            "bert": open_problem(build_config(zoo_settings(zoo), root=zoo)),
            "llama": open_problem(build_config(language, root=language_zoo)),
        }


def test_what_directions_need() -> None:
    kfac, grams = MatsConfig(), MatsConfig(objective="grams")
    assert needs_of(expand_directions(["experts", kfac], ["a", "b"]), ["a", "b"]) == {"grams", "output-grams"}
    assert needs_of(expand_directions(["experts", grams], ["a", "b"]), ["a", "b"]) == {"grams"}
    parts = expand_directions(["experts"], ["a", "b"], SensConfig())
    assert needs_of(parts, ["a", "b"]) == {"saliency", "logit-distance"}
    assert needs_of(expand_directions(["experts"], ["a", "b"]), ["a", "b"]) == frozenset()


@pytest.mark.parametrize(
    ("needs", "passes"),
    [
        ((), 0.0),
        (("grams",), 1.0),
        (("merged-grams",), 2.0),
        (("saliency", "base-saliency"), 6.0),
        (("logit-distance",), 2.0),
    ],
)
def test_passes_that_do_not_depend_on_classes(
    problems: dict[str, Problem], needs: tuple[Need, ...], passes: float
) -> None:
    for problem in problems.values():
        assert statistics_passes(needs, problem.calibration, experts=2) == pytest.approx(passes)


@pytest.mark.parametrize("need", ["fisher", "output-grams"])
def test_a_classifier_goes_back_from_every_class_and_a_language_model_once(
    problems: dict[str, Problem], need: Need
) -> None:
    assert statistics_passes([need], problems["llama"].calibration, experts=2) == pytest.approx(3.0)
    tasks = problems["bert"].calibration.tasks.values()
    tokens = [task.splits["fit"].tokens for task in tasks]
    classes = [task.num_labels or 0 for task in tasks]
    assert min(classes) > 1
    expected = sum(t * (1 + 2 * c) for t, c in zip(tokens, classes, strict=True)) / sum(tokens)
    assert statistics_passes([need], problems["bert"].calibration, experts=2) == pytest.approx(expected)


def test_bytes_are_of_the_largest_and_no_more_than_a_pass_takes(
    problems: dict[str, Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = problems["bert"].family
    entries = sum(parameter.numel for parameter in family.parameters.values())
    shapes = [parameter.shape for parameter in family.parameters.values() if len(parameter.shape) == 2]
    assert statistics_bytes([], family) == statistics_bytes(["logit-distance"], family) == 0
    assert statistics_bytes(["fisher", "grams"], family) == 4 * max(entries, sum(i**2 for _, i in shapes))
    assert statistics_bytes(["output-grams"], family) == 4 * sum(o**2 for o, _ in shapes)
    monkeypatch.setattr(statistics_cost, "LARGEST", 8)
    assert statistics_bytes(["output-grams"], family) == 4 * sum(o**2 for o, _ in shapes if o <= 8)
    monkeypatch.setattr(statistics_cost, "BUDGET", 100)
    assert statistics_bytes(["fisher"], family) == 100
    assert statistics.BUDGET == 4 << 30


def test_the_plan_says_them(settings: Settings, tmp_path: Path) -> None:
    plans = {
        name: make_plan(build_config(settings(directions=directions), root=tmp_path), root=tmp_path)
        for name, directions in (("experts", ["experts"]), ("grams", ["regmean"]), ("led", ["led"]))
    }
    assert "statistics" not in plans["experts"].seconds
    assert 0 < plans["grams"].seconds["statistics"] < plans["led"].seconds["statistics"]
