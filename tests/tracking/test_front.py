"""The views of a front: tables, pictures and hypervolume, of runs made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.records import Record, Trajectory
from optmerge.tracking.front import FrontView, hypervolume_curve, open_front
from optmerge.tracking.front_plots import front_figure, hypervolume_figure
from optmerge.tracking.plots import save_figure
from optmerge.tracking.report import render_report, write_report
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_rows import RowMaker
from tests.tracking.fake_run import FakeRun

Fake = Callable[..., FakeRun]


def with_front(fake: FakeRun, *, members: int = 7, seed: int = 0) -> Path:
    """A finished run whose front lies on the sphere around (1, ..., 1), two members beaten, the third the result."""
    folder = fake.baselines().search(10).finish().folder
    generator = np.random.default_rng(seed)
    tasks = fake.tasks
    entries: list[dict[str, Any]] = []
    for number in range(members):
        place = np.abs(generator.normal(size=len(tasks)))
        select = dict(zip(tasks, (1 - 0.8 * place / np.linalg.norm(place)).tolist(), strict=True))
        beaten = number in (1, 4)
        report = None if beaten else {task: {fake.metric: 0.9 - 0.2 * value} for task, value in select.items()}
        entries.append(
            {
                "record": 40 + number,
                "chosen": number == 2,
                "on_front": not beaten,
                "fit": select,
                "select": {task: value + 0.1 * beaten for task, value in select.items()},
                "value": float(np.mean(list(select.values()))),
                "select_record": 90 + number,
                "report": report,
                "report_record": None if beaten else 190 + number,
            }
        )
    content = {"format": 1, "tasks": list(tasks), "split": "fit", "evaluated": 30, "size": 9, "members": entries}
    (folder / "front.json").write_text(json.dumps(content))
    return folder


def opened(folder: Path) -> FrontView:
    front = open_front(RunView.open(folder, vectors=False))
    assert front is not None
    return front


def test_tables_of_a_front(fake: Fake) -> None:
    front = opened(with_front(fake()))
    assert front.final
    firsts = [(member.select or {})["sentiment"] for member in front.members]
    assert firsts == sorted(firsts)
    text = front.markdown()
    assert "9 of 30 candidates are not beaten by another on every task of the fit split" in text
    assert "7 were scored on select, where 5 are not beaten." in text
    select, report = (part for part in text.split("\n\n") if part.startswith("|"))
    assert "record 42 *" in select
    assert "record 41" in select
    assert "record 41" not in report
    for name in ("base", "expert:sentiment", "expert:author", "uniform:0.3", "method:iso-c:1.4"):
        assert f"| {name} " in report
    json.dumps(front.to_dict())


def test_the_distance_to_a_tasks_expert_is_in_points_of_the_reports_metric(fake: Fake) -> None:
    front = opened(with_front(fake()))
    member = next(member for member in front.members if member.on_front)
    expert = next(mark for mark in front.marks if mark.name == "expert:author")
    assert member.report is not None
    assert expert.report is not None
    gap = front.behind(member, "author")
    assert gap == pytest.approx(member.report["author"] - expert.report["author"])
    assert f"{member.report['author']:.3f} ({100 * gap:+.1f})" in front.markdown()
    beaten = next(member for member in front.members if not member.on_front)
    assert front.behind(beaten, "author") is None


def test_while_a_search_goes_on_its_front_is_what_fit_says(fake: Fake) -> None:
    running = fake().baselines()
    for step, parts in enumerate([(1.0, 3.0), (3.0, 1.0), (4.0, 4.0), (2.0, 2.0)]):
        running.add(
            phase="search",
            driver="cma",
            split="fit",
            value=sum(parts) / 2,
            vector=running.vector(step),
            per_task=dict(zip(running.tasks, parts, strict=True)),
        )
    front = opened(running.close().folder)
    assert not front.final
    assert (front.evaluated, front.size) == (4, 3)
    assert [tuple((member.select or {}).values()) for member in front.members] == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert "select and report are scored for it when the search ends" in front.markdown()
    assert "fit split" in front_figure(front).axes[0].get_title(loc="left")


def test_a_run_that_kept_no_front_says_so(fake: Fake) -> None:
    folder = with_front(fake())
    (folder / "front.json").unlink()
    front = opened(folder)
    assert (front.final, front.ended) == (False, True)
    assert "none of them was scored on report for it (`budget.front`" in front.markdown()


def test_no_front_of_one_task_or_before_anything_was_judged(fake: Fake) -> None:
    assert open_front(RunView.open(fake("one", tasks=("sentiment",)).baselines().search(3).close().folder)) is None
    nothing = RunView.open(fake("none").baselines().close().folder)
    assert open_front(nothing) is None
    assert hypervolume_curve(nothing) is None


def with_parts(fake: FakeRun, base: tuple[float, float], parts: list[tuple[float, float]]) -> RunView:
    """A run whose base and candidates have these parts on fit."""

    def add(number: int, values: tuple[float, float], **fields: Any) -> Record:
        per_task = dict(zip(fake.tasks, values, strict=True))
        return fake.add(split="fit", value=sum(values) / 2, per_task=per_task, **fields)

    add(0, base, phase="baseline", driver="baseline", name="base")
    for number, values in enumerate(parts):
        add(number, values, phase="search", driver="cma", vector=fake.vector(number))
    return RunView.open(fake.close().folder)


def test_hypervolume_is_the_share_of_the_box_from_ideal_to_base(fake: Fake) -> None:
    view = with_parts(fake(), (1.0, 1.0), [(2.0, 0.9), (0.5, 0.5), (0.0, 0.9), (0.6, 0.6), (0.9, 0.0)])
    curve = hypervolume_curve(view)
    assert curve is not None
    evaluations, shares = curve
    assert evaluations == [1, 2, 3, 4, 5]
    assert shares == pytest.approx([0.0, 0.25, 0.30, 0.30, 0.35], abs=0.003)


def test_hypervolume_stays_at_zero_when_no_candidate_beats_the_base_on_a_task(fake: Fake) -> None:
    curve = hypervolume_curve(with_parts(fake(), (1.0, 0.1), [(0.5, 0.5), (0.2, 0.9)]))
    assert curve is not None
    assert curve[1] == [0.0, 0.0]


@pytest.mark.parametrize("tasks", [("sentiment", "author"), ("sentiment", "author", "tweets", "topics")])
def test_pictures_show_members_and_marks(fake: Fake, tmp_path: Path, tasks: tuple[str, ...]) -> None:
    front = opened(with_front(fake(tasks=tasks)))
    figure = front_figure(front)
    assert len(figure.axes) == 2
    (legend,) = figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    assert {"the front", "the search's result", "beaten on select", "base", "uniform:0.3"} <= labels
    named = labels | {figure.axes[1].get_title(loc="left").partition("beyond the axes: ")[2]}
    experts = {name for some in named for name in some.split(", ") if "expert" in name}
    assert experts == ({f"expert:{task}" for task in tasks} if len(tasks) == 2 else {"each task's expert"})
    drawn = [line for line in figure.axes[1].get_lines() if line.get_label() in ("the front", "the search's result")]
    assert len(drawn) == 5
    for axes in figure.axes:
        for line in axes.get_lines():
            assert np.isfinite(np.asarray(line.get_data(), dtype=float)).all()
    save_figure(figure, tmp_path / "front.png")
    again = tmp_path / "again.png"
    save_figure(front_figure(front), again)
    assert (tmp_path / "front.png").read_bytes() == again.read_bytes()


def test_a_baseline_far_from_the_front_is_named_instead_of_drawn(fake: Fake) -> None:
    folder = with_front(fake())
    records = Trajectory.read(folder).records
    far = next(r.id for r in records if r.name == "uniform:0.3" and r.split == "select")
    lines = (folder / "trajectory.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        entry = json.loads(line)
        if entry["phase"] == "baseline" and entry["split"] == "select":
            entry["per_task"] = dict.fromkeys(("sentiment", "author"), 50.0 if entry["id"] == far else 1.0)
            lines[number] = json.dumps(entry)
    (folder / "trajectory.jsonl").write_text("\n".join(lines) + "\n")
    select, report = front_figure(opened(folder)).axes
    assert "beyond the axes: uniform:0.3" in select.get_title(loc="left")
    assert "uniform:0.3" not in {line.get_label() for line in select.get_lines()}
    assert "uniform:0.3" in {line.get_label() for line in report.get_lines()}


def test_hypervolume_is_drawn(tmp_path: Path) -> None:
    figure = hypervolume_figure(([1, 2, 4], [0.0, 0.1, 0.4]))
    (line,) = figure.axes[0].get_lines()
    assert np.asarray(line.get_ydata()).tolist() == [0.0, 0.1, 0.4]
    save_figure(figure, tmp_path / "hypervolume.png")


def test_the_report_has_the_front_and_its_hypervolume(fake: Fake) -> None:
    folder = with_front(fake())
    view = with_parts(fake("second"), (1.0, 1.0), [(0.5, 0.5), (0.4, 0.7)])
    text = write_report(folder).read_text()
    assert "## The front" in text
    assert "![The merges of the front, task by task](front.png)" in text
    assert "optmerge export RUN --weights sentiment=2,author=1" in text
    assert (folder / "front.png").stat().st_size > 10_000
    text = write_report(view.folder).read_text()
    assert "![Hypervolume against evaluations](hypervolume.png)" in text
    assert "--weights" not in text
    assert "## The front" not in render_report(
        RunView.open(fake("third", tasks=("sentiment",)).baselines().close().folder)
    )


def test_what_is_scored_for_a_front_has_rows_of_its_own() -> None:
    rows = RowMaker([])
    select = Record(7, "report", "cma", "select", 0.4, name="front:3", per_task={"a": 0.3, "b": 0.5})
    report = Record(8, "report", "cma", "report", None, name="front:3", metrics={"a": {"accuracy": 0.9}})
    assert {key: value for key, value in rows.row(select).items() if key.startswith("front/")} == {
        "front/3/select/task/a": 0.3,
        "front/3/select/task/b": 0.5,
    }
    told = rows.row(report)
    assert told["front/3/report/a/accuracy"] == 0.9
    assert not any(key.startswith(("report/", "finalist/")) for key in told)
