"""The plan: right about what can be known from headers, and reads no weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optmerge.config.load import build_config
from optmerge.merging.placement import Placement
from optmerge.models.family import Family
from optmerge.runner import memory, plan_time, simulation
from optmerge.runner import problem as problem_module
from optmerge.runner import search as search_module
from optmerge.runner.folder import RunFolder
from optmerge.runner.manifest import make_manifest
from optmerge.runner.plan import Plan, make_plan
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import resume, search

Settings = Callable[..., dict[str, Any]]


def plan(settings: dict[str, Any], root: Path) -> Plan:
    return make_plan(build_config(settings, root=root), root=root)


def test_no_weight_is_read(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Family, "read", refuse)
    made = plan(settings(directions=["experts", "iso-c"], space={"granularity": "tensor-wise"}), tmp_path)
    assert made.directions == ("a", "b", "iso-c")
    assert made.dimension == 3 * len(made.groups)
    assert made.baselines == 1 + 2 + 1 + 2 + 1  # base, experts, average, two of the grid, one scale of Iso-C
    merged = sum(group.parameters for group in made.groups)
    assert made.memory["gradients and activations"] > 4 * merged
    assert made.memory["model"] > 4 * merged  # and two heads
    assert made.memory["peak"] == sum(made.memory.values()) - made.memory["peak"]
    assert made.mapped > 4 * 4 * merged  # base, two experts, and Iso-C's delta
    assert all(seconds > 0 for seconds in made.seconds.values())


def test_it_plans_the_search_that_runs(settings: Settings, tmp_path: Path) -> None:
    made = plan(settings(), tmp_path)
    run = search(build_config(settings(), root=tmp_path), root=tmp_path)
    rows = run.result["rows"]
    assert sum(row["kind"] == "baseline" for row in rows) == made.baselines
    assert run.result["evaluations"] == made.evaluations
    assert run.recipe is not None
    assert run.recipe.coefficients.size == made.dimension


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"space": {"granularity": "tensor-wise"}}, "over-fit easily"),
        ({"driver": {"name": "cma", "population": 4}}, "close to random search for cma"),
    ],
)
def test_warnings(settings: Settings, tmp_path: Path, changes: dict[str, Any], warning: str) -> None:
    assert any(warning in text for text in plan(settings(**changes), tmp_path).warnings)
    wide = settings(space={"granularity": "task-wise"}, budget={"evaluations": 100})
    assert not any(warning in text for text in plan(wide, tmp_path).warnings)


def test_workers_that_share_a_device_are_no_faster_than_one(settings: Settings, tmp_path: Path) -> None:
    def evaluations(executor: dict[str, Any], patch: pytest.MonkeyPatch) -> float:
        patch.setattr(plan_time, "_product_rate", lambda device, dtype: 1e12)
        made = plan(settings(executor=executor), tmp_path)
        assert made.workers == executor["workers"]
        return made.per_hour

    with pytest.MonkeyPatch.context() as patch:
        one = evaluations({"workers": 1}, patch)
        assert one > 0
        assert evaluations({"workers": 4}, patch) == one
        patch.setattr(
            plan_time, "devices_of", lambda device, configured, workers: [f"cuda:{n}" for n in range(workers)]
        )
        assert evaluations({"workers": 4}, patch) == pytest.approx(4 * one)


def test_no_gradient_no_gradient_buffer(settings: Settings, tmp_path: Path) -> None:
    without, with_one = plan(settings(driver={"name": "optuna"}), tmp_path), plan(settings(), tmp_path)
    assert "gradients and activations" not in without.memory
    assert "no gradients" in without.arithmetic
    assert without.memory["activations"] < with_one.memory["gradients and activations"]


def test_little_memory_changes_the_form_of_the_gradient_and_then_is_too_little(
    settings: Settings, tmp_path: Path
) -> None:
    plenty = plan(settings(), tmp_path)
    assert "accumulated and contracted once" in plenty.arithmetic
    less = plan(settings(memory=f"{plenty.memory['peak'] - 1000}B"), tmp_path)
    assert "one by one" in less.arithmetic
    assert less.memory["gradients and activations"] < plenty.memory["gradients and activations"]
    short = plan(settings(memory="1MB"), tmp_path)
    assert any("are needed and 0.0 GB may be used" in note for note in short.warnings)


def test_files_in_the_page_cache_of_a_control_group_are_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    machine = memory._available()
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**12))
    assert memory._available() == 10**12 > machine  # there is no control group
    for name, content in {
        "memory.max": "8000000\n",
        "memory.current": "7900000\n",
        "memory.stat": "anon 1900000\nfile 6000000\nactive_file 4000000\ninactive_file 1000000\nshmem 1000000\n",
    }.items():
        (tmp_path / name).write_text(content)
    assert memory._available() == 8_000_000 - (7_900_000 - 5_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._available() == 10**12


def test_a_run_keeps_the_form_of_the_gradient_that_it_began_with(settings: Settings, tmp_path: Path) -> None:
    config = absolute_references(build_config(settings(), root=tmp_path), tmp_path)
    chosen, pinned = open_problem(config), open_problem(config, form="hooks")
    assert (chosen.engine.form, pinned.engine.form) == ("accumulate", "hooks")
    assert make_manifest(pinned)["gradient"] == "hooks"


def test_a_resumed_run_keeps_on_the_accelerator_what_it_began_with(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is free by then: fused and streamed contractions differ in their last bits."""
    room = memory.MemoryPlan({}, 0, 0, "accumulate", resident=("b", "iso-c"), base_resident=True)
    monkeypatch.setattr(problem_module, "plan_memory", lambda *_: room)
    begun = open_problem(build_config(settings(directions=["experts", "iso-c"]), root=tmp_path))
    assert begun.engine._placement == Placement(base=True, directions=frozenset({1, 2}))
    kept = make_manifest(begun)["kept"]
    assert kept == ["base", "b", "iso-c"]
    monkeypatch.setattr(problem_module, "plan_memory", lambda *_: replace(room, resident=(), base_resident=False))
    assert open_problem(begun.config).kept == ()
    assert open_problem(begun.config, kept=kept).engine._placement == begun.engine._placement


def test_resume_opens_what_the_manifest_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    class OpenedError(Exception):
        pass

    def opened(*_: object, **options: Any) -> None:
        told.update(options)
        raise OpenedError

    run = RunFolder.create(tmp_path / "run", build_config(settings(), root=tmp_path))
    run.write_json("manifest.json", {"gradient": "hooks", "kept": ["base", "b"]})
    monkeypatch.setattr(search_module, "open_problem", opened)
    with pytest.raises(OpenedError):
        resume(tmp_path / "run")
    assert (told["form"], told["kept"]) == ("hooks", ["base", "b"])


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"driver": {"name": "cma"}, "objective": {"terms": [{"name": "expert-kl"}], "aggregate": "worst"}}, 1),
        ({}, 3),
        ({"checkpointing": True}, 4),
        ({"checkpointing": True, "objective": {"terms": [{"name": "expert-kl"}], "aggregate": "worst"}}, 5),
    ],
)
def test_the_time_of_an_evaluation_counts_its_passes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], passes: int
) -> None:
    monkeypatch.setattr(plan_time, "_product_rate", lambda *_: 1e9)
    forward = plan(settings(driver={"name": "optuna"}), tmp_path).seconds["one evaluation"]
    assert plan(settings(**changes), tmp_path).seconds["one evaluation"] == pytest.approx(passes * forward)


def test_a_step_with_curvature_is_shared_out_over_the_evaluations_that_it_counts(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_time, "_product_rate", lambda *_: 1e9)
    forward = plan(settings(driver="cma"), tmp_path).seconds["one evaluation"]
    made = plan(settings(driver="levenberg-marquardt", budget={"evaluations": 20}), tmp_path)
    d = made.dimension
    assert made.seconds["one evaluation"] * (d + 1) == pytest.approx((d + 1 + 3) * forward)
    assert made.memory["features"] > 0
    assert any(f"which counts {d + 1}; allow ten steps ({10 * (d + 1)})" in note for note in made.warnings)


def test_fewer_tokens_are_no_advice_where_methods_take_the_memory(settings: Settings, tmp_path: Path) -> None:
    short = plan(settings(memory="1MB", directions=["experts", "iso-c"]), tmp_path)
    (advice,) = [note for note in short.warnings if "would help" in note]
    assert "no whole methods among directions" in advice
    assert "batch_tokens" not in advice


def test_an_architecture_that_cannot_be_simulated_is_planned_without_its_activations(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise NotImplementedError("aten::odd has no meta form")

    monkeypatch.setattr(simulation.Passes, "peak", refuse)
    made = plan(settings(), tmp_path)
    assert any("aten::odd has no meta form" in note for note in made.warnings)
    assert made.memory["peak"] > 0
