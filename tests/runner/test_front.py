"""The front of a search: who may be on it, what is scored for it, and that a run keeps it whatever interrupts it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunError, RunInterrupted
from optmerge.merging.recipe import Recipe
from optmerge.records import Evaluation, Record, SplitName, Trajectory
from optmerge.runner.folder import RunFolder
from optmerge.runner.front import Front, front_candidates, front_of, score_front
from optmerge.runner.front_folder import read_front, recipe_name
from optmerge.runner.result import Scored
from optmerge.runner.search import resume, search
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
TASKS = ("a", "b")


def judged(id: int, parts: tuple[float, float] | None, digest: str = "", **changes: Any) -> Record:
    """A candidate judged on all of fit, unless told otherwise."""
    fields: dict[str, Any] = {
        "phase": "search",
        "driver": "cma",
        "split": "fit",
        "value": None if parts is None else sum(parts) / 2,
        "per_task": {} if parts is None else dict(zip(TASKS, parts, strict=True)),
        "vector_sha256": digest or f"v{id}",
    }
    return Record(id, **(fields | changes))


def selected(id: int, parts: tuple[float, float], digest: str, **changes: Any) -> Record:
    return judged(id, parts, digest, **({"phase": "select", "split": "select"} | changes))


def numbers(records: list[Record]) -> list[int]:
    return [record.id for record in records]


def test_every_vector_that_was_judged_on_all_of_fit_is_a_candidate_once() -> None:
    records = [
        judged(0, (1.0, 1.0), phase="baseline"),
        judged(1, (1.0, 2.0)),
        judged(2, (2.0, 1.0), "v1"),
        judged(3, None, error="out of memory"),
        judged(4, (0.0, float("nan"))),
        judged(5, (0.5, 0.5), examples="abc"),
        judged(6, (0.1, 0.1), alarms={"collapse": "gone"}),
        judged(7, (3.0, 3.0)),
        selected(8, (0.2, 0.2), "v7"),
        judged(9, (0.0, 0.0), phase="report", split="select"),
    ]
    found, split = front_candidates(records, TASKS)
    assert (numbers(found), split) == ([1, 7], "fit")
    assert numbers(front_candidates(records, TASKS, collapsed=True)[0]) == [1, 6, 7]


def test_iterates_on_select_are_the_candidates_where_a_driver_saw_mini_batches() -> None:
    records = [judged(0, (1.0, 2.0), examples="x"), selected(1, (1.0, 1.0), "v0"), selected(2, (0.5, 3.0), "v2")]
    found, split = front_candidates(records, TASKS)
    assert (numbers(found), split) == ([1, 2], "select")


def test_of_a_schedule_only_what_the_last_objective_judged_is_compared() -> None:
    records = [
        judged(0, (0.0, 0.0)),
        judged(1, (2.0, 1.0), stage=1),
        selected(2, (2.0, 1.0), "v1", stage=1),
        judged(3, (1.0, 2.0), "v1", stage=2),
        selected(4, (1.0, 2.0), "v1", stage=2),
    ]
    assert numbers(front_candidates(records, TASKS, objectives=["kl", "accuracy", "accuracy"])[0]) == [1, 3]
    assert numbers(front_candidates(records, TASKS, objectives=["kl", "kl", "kl"])[0]) == [0, 1, 3]


def test_the_front_and_its_size_before_it_was_thinned() -> None:
    records = [judged(i, (float(i), 10.0 - i)) for i in range(11)] + [judged(11, (5.0, 5.5)), judged(12, (0.0, 10.0))]
    kept, size = front_of(records, TASKS, count=5)
    assert size == 11
    assert len(kept) == 5
    assert {0, 10} <= set(numbers(kept)) <= set(range(11))


class Scorer:
    """Gives scores by record, and remembers who was scored on what."""

    def __init__(self, select: dict[int, tuple[float, float]], *, failing: tuple[int, ...] = ()) -> None:
        self.parts = select
        self.failing = failing
        self.asked: list[tuple[str, SplitName]] = []

    def __call__(self, name: str, record: Record, split: SplitName) -> tuple[Record, Evaluation]:
        self.asked.append((name, split))
        error = "out of memory" if split == "report" and record.id in self.failing else None
        parts = self.parts[record.id] if split == "select" else None
        metrics = {task: {"accuracy": 0.5} for task in TASKS} if split == "report" else {}
        made = judged(100 + record.id, parts, phase="report", split=split, metrics=metrics, error=error, name=name)
        return made, Evaluation(0.0)


def scored_front(records: list[Record], scorer: Scorer, winner: Record, *, count: int = 16) -> Front | None:
    report = judged(99, None, winner.vector_sha256 or "", phase="report", split="report", metrics={"a": {}, "b": {}})
    finalist = Scored("cma", "search", winner, report, {})
    return score_front(records, scorer, tasks=TASKS, count=count, finalists=[finalist])


def test_select_judges_the_front_and_only_what_it_leaves_is_reported() -> None:
    winner = selected(4, (0.6, 0.6), "v1")
    records = [judged(0, (0.0, 1.0)), judged(1, (0.5, 0.5)), judged(2, (1.0, 0.0)), judged(3, (0.2, 0.9)), winner]
    scorer = Scorer({0: (0.1, 1.2), 2: (1.1, 0.1), 3: (0.7, 0.7)})
    front = scored_front(records, scorer, winner)
    assert front is not None
    assert (front.split, front.evaluated, front.size) == ("fit", 4, 4)
    assert [(m.candidate.id, m.select.id, m.on_front, m.chosen) for m in front.members] == [
        (0, 100, True, False),
        (1, 4, True, True),
        (2, 102, True, False),
        (3, 103, False, False),
    ]
    assert scorer.asked == [
        ("front:0", "select"),
        ("front:2", "select"),
        ("front:3", "select"),
        ("front:0", "report"),
        ("front:2", "report"),
    ]
    assert [None if m.report is None else m.report.id for m in front.members] == [100, 99, 102, None]
    told = front.to_dict()["members"]
    assert told[0]["fit"] == {"a": 0.0, "b": 1.0}
    assert told[0]["select"] == {"a": 0.1, "b": 1.2}
    assert told[0]["report"] == {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.5}}
    assert told[3]["report"] is None


def test_the_result_is_a_member_though_another_beats_it_on_fit() -> None:
    winner = selected(2, (0.3, 0.3), "v1")
    records = [judged(0, (0.0, 0.0)), judged(1, (0.5, 0.5)), winner]
    front = scored_front(records, Scorer({0: (0.4, 0.4)}), winner, count=1)
    assert front is not None
    assert [(m.candidate.id, m.chosen, m.on_front) for m in front.members] == [(0, False, False), (1, True, True)]


def test_the_result_stands_for_what_is_equal_to_it_on_select() -> None:
    winner = selected(3, (0.5, 0.5), "v2")
    records = [judged(0, (0.0, 1.0)), judged(1, (0.5, 0.6)), judged(2, (0.6, 0.5)), winner]
    front = scored_front(records, Scorer({0: (0.5, 0.5), 1: (0.5, 0.5)}), winner)
    assert front is not None
    assert [(m.candidate.id, m.chosen, m.on_front) for m in front.members] == [
        (0, False, False),
        (1, False, False),
        (2, True, True),
    ]


def test_what_fails_on_report_stays_on_the_front_and_what_fails_on_select_does_not() -> None:
    winner = selected(3, (0.6, 0.6), "v1")
    records = [judged(0, (0.0, 1.0)), judged(1, (0.5, 0.5)), judged(2, (1.0, 0.0)), winner]
    front = scored_front(records, Scorer({0: (0.0, 1.0), 2: (float("nan"), 0.0)}, failing=(0,)), winner)
    assert front is not None
    assert [(m.candidate.id, m.on_front, m.report is None) for m in front.members] == [
        (0, True, True),
        (1, True, False),
    ]


def test_there_is_no_front_of_one_task_or_when_none_is_wanted() -> None:
    winner = selected(1, (0.6, 0.6), "v0")
    records = [judged(0, (0.0, 1.0)), winner]
    assert scored_front(records, Scorer({}), winner, count=0) is None
    finalist = Scored("cma", "search", winner, winner, {})
    assert score_front(records, Scorer({}), tasks=["a"], count=4, finalists=[finalist]) is None


def run(settings: dict[str, Any], root: Path) -> Path:
    return search(build_config(settings, root=root), root=root).folder


@pytest.fixture(scope="module")
def searched(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of several objectives that has ended; little of its front was scored before."""
    from tests.zoo import zoo_settings

    driver = {"name": "optuna", "sampler": "nsga2", "population": 6}
    settings = zoo_settings(
        zoo,
        driver=driver,
        budget={"evaluations": 24, "front": 5, "finalists": 1, "select_every": 4},
        directions=["experts", "regmean"],
    )
    return run(settings, tmp_path_factory.mktemp("searched"))


def test_a_run_keeps_its_front(searched: Path) -> None:
    records = Trajectory.read(searched).records
    front = read_front(RunFolder(searched))
    assert front is not None
    assert front["tasks"] == ["a", "b"]
    assert front["evaluated"] <= 24
    candidates = [r for r in records if r.phase == "search" and r.error is None]
    for member in front["members"]:
        parts = member["fit"]
        beaten = [
            r for r in candidates if all(r.per_task[t] <= parts[t] for t in TASKS) and dict(r.per_task) != dict(parts)
        ]
        assert not beaten or member["chosen"]
        select = records[member["select_record"]]
        assert (select.split, dict(select.per_task)) == ("select", member["select"])
        assert select.vector_sha256 == records[member["record"]].vector_sha256
    shown = [member for member in front["members"] if member["on_front"]]
    assert len(shown) >= 2
    for member in shown:
        report = records[member["report_record"]]
        assert (report.phase, report.split) == ("report", "report")
        assert {task: dict(values) for task, values in report.metrics.items()} == member["report"]
    assert sum(member["chosen"] for member in front["members"]) == 1
    result = json.loads((searched / "result.json").read_text())
    chosen = next(member for member in front["members"] if member["chosen"])
    assert chosen["value"] == result["best"]["select"]


def test_each_merge_of_the_front_has_a_recipe_of_its_own_that_can_be_moved(searched: Path, tmp_path: Path) -> None:
    front = read_front(RunFolder(searched))
    assert front is not None
    moved = tmp_path / "moved"
    shutil.copytree(searched, moved)
    result = Recipe.load(searched / "recipe.yaml")
    for member in front["members"]:
        path = moved / recipe_name(member["record"])
        assert path.exists() == member["on_front"]
        if not member["on_front"]:
            continue
        recipe = Recipe.load(path)
        assert recipe.created["record"] == member["record"]
        assert np.array_equal(recipe.coefficients, result.coefficients) == member["chosen"]
        for direction in recipe.directions:
            assert (
                direction.stored is None
                or not Path(direction.stored).is_absolute()
                or moved in Path(direction.stored).parents
            )


def test_a_run_that_was_cut_while_the_front_was_scored_goes_on_exactly(searched: Path, tmp_path: Path) -> None:
    lines = (searched / "trajectory.jsonl").read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"front:' in line)
    for kept in sorted({first - 1, first, first + 1, len(lines) - 1}):
        folder = tmp_path / str(kept) / "run"
        shutil.copytree(searched, folder)
        shutil.rmtree(folder / "front")
        (folder / "front.json").unlink()
        (folder / "result.json").write_text('{"status": "interrupted", "reason": "cut"}')
        (folder / "trajectory.jsonl").write_bytes(b"".join(lines[:kept]))
        resume(folder)
        assert facts(folder) == facts(searched)
        assert (folder / "front.json").read_text() == (searched / "front.json").read_text()
        assert {path.name for path in (folder / "front").iterdir()} == {
            path.name for path in (searched / "front").iterdir()
        }


def test_a_stop_while_the_front_is_scored_leaves_a_run_that_goes_on(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched, tmp_path / "run")
    lines = (searched / "trajectory.jsonl").read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if b'"front:' in line)
    (tmp_path / "run" / "trajectory.jsonl").write_bytes(b"".join(lines[: first + 1]))
    (tmp_path / "run" / "result.json").write_text('{"status": "interrupted", "reason": "cut"}')
    with pytest.raises(RunInterrupted, match="enough"):
        resume(tmp_path / "run", stop=lambda: "enough")
    assert len(Trajectory.read(tmp_path / "run").records) == first + 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("driver", [{"name": "adam", "batch": 6}, {"name": "cma", "population": 4}])
def test_searches_of_one_value_have_a_front_as_well(settings: Settings, tmp_path: Path, driver: Any) -> None:
    folder = run(settings(driver=driver, budget={"evaluations": 8, "front": 3}), tmp_path)
    front = read_front(RunFolder(folder))
    assert front is not None
    assert front["split"] == ("select" if driver["name"] == "adam" else "fit")
    assert 1 <= len(front["members"]) <= 4
    named = [r for r in Trajectory.read(folder).records if (r.name or "").startswith("front:")]
    if front["split"] == "select":
        assert {record.split for record in named} <= {"report"}, "select is known already"
    assert {record.phase for record in named} <= {"report"}


def test_the_front_changes_nothing_of_the_result(settings: Settings, tmp_path: Path) -> None:
    made = [run(settings(budget={"evaluations": 6, "front": count}, output=str(count)), tmp_path) for count in (0, 8)]
    results = [json.loads((folder / "result.json").read_text()) for folder in made]
    for key in ("best", "finalists", "comparison", "reason"):
        assert results[0][key] == results[1][key]
    assert not (made[0] / "front.json").exists()
    assert facts(made[1])[: len(facts(made[0]))] == facts(made[0])


def test_a_front_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "front.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match=r"front\.json has format 99"):
        read_front(RunFolder(tmp_path))


@pytest.mark.parametrize("term", ["l2", "lm-eval"])
def test_terms_that_belong_to_no_task_are_refused(settings: Settings, tmp_path: Path, term: str) -> None:
    extra = {"name": term, **({"tasks": ["x"]} if term == "lm-eval" else {})}
    made = settings(driver={"name": "optuna", "sampler": "nsga3"}, objective={"terms": [{"name": "expert-kl"}, extra]})
    with pytest.raises(ConfigError, match=f"driver.sampler is nsga3, .* and {term} is a part of no task"):
        build_config(made, root=tmp_path)
