"""Schedules in the search file: what a stage is, what cannot be, and the presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from optmerge.config.load import build_config, dump_config, load_config
from optmerge.errors import ConfigError
from optmerge.presets import preset_folder, preset_summary

SEARCH: dict[str, Any] = {
    "base": "base",
    "experts": {"a": "one", "b": "two"},
    "tasks": {"a": {"expert": "a", "data": "a.jsonl"}, "b": {"expert": "b", "data": "b.jsonl"}},
    "objective": "expert-kl",
}
ADAM: dict[str, Any] = {"driver": "adam", "evaluations": 20}


def problems(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(SEARCH | changes, root=tmp_path)
    return str(caught.value)


def test_a_search_without_a_schedule_has_one_stage(tmp_path: Path) -> None:
    config = build_config(SEARCH | {"driver": "cma"}, root=tmp_path)
    assert [(stage.driver.name, stage.evaluations, stage.examples) for stage in config.stages] == [("cma", None, None)]
    assert config.at_stage(0) is config


def test_a_stage_has_what_it_says_and_otherwise_what_the_search_says(tmp_path: Path) -> None:
    schedule = [
        {**ADAM, "granularity": "task-wise"},
        {"driver": {"name": "cma", "sigma": 0.3}, "objective": "accuracy"},
    ]
    config = build_config(SEARCH | {"schedule": schedule, "space": "layer-wise"}, root=tmp_path)
    first, second = config.at_stage(0), config.at_stage(1)
    assert (first.driver.name, second.driver.name) == ("adam", "cma")
    assert (first.space.granularity, second.space.granularity) == ("task-wise", "layer-wise")
    assert first.objective == config.objective
    assert [term.name for term in second.objective.terms] == ["accuracy"]
    assert first.budget == config.budget


def test_settings_that_say_nothing_in_coarser_groups_are_left_out(tmp_path: Path) -> None:
    schedule = [{**ADAM, "granularity": "task-wise"}, {"driver": "adam"}]
    space = {"granularity": "chunk-wise", "chunks": {"budget": 2.0}, "bounds": [0, 2]}
    config = build_config(SEARCH | {"schedule": schedule, "space": space}, root=tmp_path)
    assert config.at_stage(0).space.chunks is None
    assert config.at_stage(0).space.bounds == (0.0, 2.0)
    assert config.at_stage(1).space == config.space


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"driver": "adam", "schedule": [{"driver": "cma"}]}, "driver and schedule are both given"),
        ({"schedule": []}, "schedule is []; expected at least one entry"),
        ({"schedule": "gradient-then-cna"}, "Did you mean 'gradient-then-cma'?"),
        ({"schedule": "mine.yaml"}, "schedule is 'mine.yaml', and there is no file"),
        ({"schedule": [{"evaluations": 3}]}, "schedule.0.driver: missing"),
        ({"schedule": [{"driver": "adan"}]}, "Did you mean 'adam'"),
        (
            {"schedule": [{"driver": "adam", "patients": 3}]},
            "schedule.0.patients: unknown key. Did you mean 'patience'?",
        ),
        ({"schedule": [{"driver": "adam"}, {"driver": "cma"}]}, "schedule.0.evaluations is missing; only the last"),
        (
            {"schedule": [{"driver": "adam", "evaluations": 200}, {"driver": "cma", "evaluations": 101}]},
            "budget.evaluations is 300, and the schedule's stages want 200 + 101.",
        ),
        (
            {"schedule": [{"driver": "adam", "evaluations": 50}, {"driver": "cma"}], "budget": {"evaluations": 50}},
            "budget.evaluations is 50, and the schedule's stages want 50 + the rest.",
        ),
        (
            {"schedule": [ADAM, {"driver": "adam", "granularity": "layer-wise"}]},
            "schedule.1.granularity is layer-wise after tensor-wise",
        ),
        (
            {"schedule": [{**ADAM, "granularity": "chunk-wise"}, {"driver": "adam", "granularity": "column-wise"}]},
            "schedule.1.granularity is column-wise after chunk-wise",
        ),
        (
            {"schedule": [{**ADAM, "granularity": "model-wise"}, {"driver": "adam"}], "space": {"normalise": "sum"}},
            "schedule.0.granularity: normalise is sum, and granularity model-wise",
        ),
        (
            {"schedule": [{**ADAM, "objective": "accuracy"}, {"driver": "cma"}]},
            "schedule.0.driver is adam, which needs",
        ),
        ({"schedule": [ADAM], "objective": "accuracy"}, "schedule.0.driver is adam, which needs a gradient"),
        ({"schedule": [{**ADAM, "objective": "acuracy"}]}, "Did you mean 'accuracy'?"),
        (
            {"schedule": [{**ADAM, "objective": {"preset": "expert-kl", "task_weights": {"c": 2}}}]},
            "schedule.0.objective.task_weights.c: there is no such task (a, b).",
        ),
        (
            {"schedule": [ADAM, {"driver": {"name": "cma", "population": 40}, "evaluations": 30}]},
            "schedule.1.driver.population is 40, more than schedule.1.evaluations (30)",
        ),
        ({"schedule": [{"driver": "natural-niches", "examples": 8}]}, "schedule.0.examples: natural-niches compares"),
        ({"schedule": {"driver": "adam"}}, "schedule is {"),
        ({"driver": {"name": "cma", "scale": "fisher"}}, "driver.scale is fisher, which needs the gradients"),
        (
            {
                "schedule": [
                    {**ADAM, "granularity": "task-wise"},
                    {"driver": {"name": "cma", "scale": "fisher"}},
                ]
            },
            "schedule.1.driver.scale is fisher, which needs the gradients of the same variables (tensor-wise)",
        ),
    ],
)
def test_each_mistake_has_its_message(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in problems(tmp_path, **changes)


def test_the_resolved_file_gives_the_same_search(tmp_path: Path) -> None:
    schedule = [{**ADAM, "granularity": "task-wise"}, {"driver": "cma", "objective": "accuracy", "patience": 3}]
    config = build_config(SEARCH | {"schedule": schedule}, root=tmp_path)
    written = yaml.safe_load(dump_config(config))
    assert "driver" not in written
    assert build_config(written, root=tmp_path) == config


def test_overrides_reach_into_stages(tmp_path: Path) -> None:
    config = build_config(
        SEARCH | {"schedule": "gradient-then-cma"},
        root=tmp_path,
        overrides=["schedule.1.objective=accuracy", "schedule.1.driver.sigma=0.3", "schedule.0.evaluations=7"],
    )
    assert config.stages[1].driver.model_dump()["sigma"] == 0.3
    assert config.at_stage(1).objective.terms[0].name == "accuracy"
    assert config.stages[0].evaluations == 7
    back = build_config(SEARCH | {"schedule": [ADAM]}, root=tmp_path, overrides=["schedule=null", "driver=cma"])
    assert back.stages[0].driver.name == "cma"


def test_a_schedule_of_ones_own_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("schedule:\n  - {driver: cma, patience: 2}\n", encoding="utf-8")
    assert build_config(SEARCH | {"schedule": "mine.yaml"}, root=tmp_path).stages[0].patience == 2
    (tmp_path / "mine.yaml").write_text("driver: cma\n", encoding="utf-8")
    assert "expected one key: schedule" in problems(tmp_path, schedule="mine.yaml")


@pytest.mark.parametrize("path", sorted(preset_folder("schedule").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_says_what_it_is_and_can_be_given(path: Path, tmp_path: Path) -> None:
    assert preset_summary(path).startswith(f"{path.stem}: ")
    words = next(line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# Run:"))
    assert words[2:5] == ["optmerge", "search", "search.yaml"]
    search = tmp_path / "search.yaml"
    search.write_text(yaml.safe_dump(SEARCH), encoding="utf-8")
    config = load_config(search, overrides=words[6::2])
    assert config.schedule is not None
    assert len(config.stages) > 1
