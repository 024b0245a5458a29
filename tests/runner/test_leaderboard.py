"""Leaderboards over tiny models: the same numbers as in a search, kept row by row, one delta at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.api import search
from optmerge.config.load import build_config
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.errors import ConfigError, RunError, RunInterrupted
from optmerge.merging.methods.matrixwise import Spectral
from optmerge.models.cache import cache_dir
from optmerge.runner.board import BoardRow, Leaderboard
from optmerge.runner.evaluator import Evaluator, Measurement
from optmerge.runner.leaderboard import board_search, measure_leaderboard
from optmerge.tracking.view import RunView

Settings = Callable[..., dict[str, Any]]

METHODS = ("average", "iso-c", "regmean")


def measured(made: dict[str, Any], root: Path, **changes: Any) -> Leaderboard:
    others: dict[str, Any] = {"methods": METHODS, "folder": root / "board", **changes}
    return measure_leaderboard(build_config(made, root=root), root=root, **others)


def rows_of(board: Leaderboard) -> dict[str, BoardRow]:
    return {line.row.name: line.row for line in board.lines}


@pytest.fixture
def searched(settings: Settings, tmp_path: Path) -> RunView:
    """A short search whose baselines are methods, too."""
    made = settings(
        baselines={"grid": [0.3, 0.6], "method_grid": [1.0], "methods": ["iso-c", "regmean"]},
        budget={"evaluations": 2},
        output=str(tmp_path / "run"),
    )
    run = search(made, terminal=False)
    return RunView.open(run.folder)


def test_rows_are_what_a_search_measures(searched: RunView, settings: Settings, tmp_path: Path) -> None:
    board = measured(settings(), tmp_path, against=[searched.folder])
    rows = rows_of(board)
    theirs = {row.name: row for row in searched.rows}
    same = {name: name for name in ("base", "expert:a", "expert:b", "average", "uniform:0.3", "uniform:0.6")}
    same |= {"iso-c": "method:iso-c:1", "regmean": "method:regmean:1"}
    assert set(rows) == {*same, "adam (run)"}
    for ours, name in same.items():
        assert rows[ours].select == pytest.approx(theirs[name].select, rel=1e-5)
        assert rows[ours].report == {
            task: pytest.approx(values, rel=1e-5, abs=1e-6) for task, values in theirs[name].report.items()
        }
    found = searched.search_row
    assert found is not None
    assert rows["adam (run)"].select == pytest.approx(found.select, rel=1e-5)
    assert rows["adam (run)"].evaluations == 2
    assert rows["adam (run)"].needs == ("weights", "inputs")
    assert rows["base"].select == pytest.approx(1.0)
    values = [line.row.select for line in board.lines]
    assert values == sorted(values)  # type: ignore[type-var]
    best = min((row for row in rows.values() if row.kind == "uniform"), key=lambda row: row.select or 0.0)
    assert board.uniform == best.name
    for line in board.lines:
        assert (line.difference is None) == (line.row.name == board.uniform)
        assert line.mean is not None
        assert line.mean[1] <= line.mean[0] <= line.mean[2]


def test_costs_are_told_and_no_delta_is_left(settings: Settings, tmp_path: Path) -> None:
    rows = rows_of(measured(settings(), tmp_path))
    for name in METHODS:
        assert (rows[name].seconds or 0) > 0
        assert (rows[name].peak or 0) >= 0
    assert rows["regmean"].statistics > 0
    assert rows["regmean"].needs == ("weights", "inputs")
    assert rows["iso-c"].statistics == 0
    assert rows["iso-c"].scale == 1.0
    assert not (tmp_path / "board" / "delta").exists()
    assert not (cache_dir() / "directions").exists()


def test_it_goes_on_where_it_was_stopped(settings: Settings, tmp_path: Path) -> None:
    whole = measured(settings(), tmp_path, folder=tmp_path / "whole", tune=3)
    calls = iter(range(100))
    stop_at = 9  # in the middle of a method that is tuned
    with pytest.raises(RunInterrupted, match="enough"):
        measured(settings(), tmp_path, tune=3, stop=lambda: "enough" if next(calls) == stop_at else None)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "board" / "rows").iterdir()}
    assert kept
    again = measured(settings(), tmp_path, tune=3)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert [(line.row.name, line.row.select, line.mean, line.difference) for line in again.lines] == [
        (line.row.name, line.row.select, line.mean, line.difference) for line in whole.lines
    ]

    def never() -> str | None:
        raise AssertionError("nothing is left to measure")

    fewer = measured(settings(), tmp_path, methods=["average", "iso-c"], stop=never)
    assert "regmean" not in rows_of(fewer)


def test_a_tuned_method_is_never_worse_on_select(settings: Settings, tmp_path: Path) -> None:
    rows = rows_of(measured(settings(), tmp_path, methods=["ties"], tune=4))
    published, tuned = rows["ties"], rows["ties (tuned)"]
    assert published.select is not None
    assert tuned.select is not None
    assert tuned.select <= published.select
    assert tuned.evaluations == 4
    assert 0.05 <= tuned.settings["density"] <= 1.0
    assert tuned.scale is not None
    assert 1 / 3 <= tuned.scale <= 3


def test_a_method_that_fails_is_a_row_and_tried_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise np.linalg.LinAlgError("the algorithm did not converge")

    with monkeypatch.context() as broken:
        broken.setattr(Spectral, "delta", fails)
        board = measured(settings(), tmp_path, tune=2)
    rows = rows_of(board)
    for name in ("iso-c", "iso-c (tuned)"):
        assert rows[name].select is None
    assert "LinAlgError: the algorithm did not converge" in (rows["iso-c"].error or "")
    assert board.lines[-1].row.error
    assert rows["regmean"].error is None
    again = rows_of(measured(settings(), tmp_path, tune=2))
    assert again["iso-c"].error is again["iso-c (tuned)"].error is None


def test_a_report_that_is_not_a_number_is_a_row_that_failed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Evaluator.measure

    def broken(self: Evaluator, table: np.ndarray, split: str, **options: Any) -> Measurement:
        found = measure(self, table, split, **options)  # type: ignore[arg-type]
        if split != "report" or self.problem.directions[0].name != "iso-c":
            return found
        return replace(found, means={task: dict.fromkeys(of, math.nan) for task, of in found.means.items()})

    monkeypatch.setattr(Evaluator, "measure", broken)
    rows = rows_of(measured(settings(), tmp_path))
    assert "not a finite number on report: a/accuracy" in (rows["iso-c"].error or "")
    assert rows["average"].error is None


def test_methods_that_the_search_file_names_stand_beside_the_published_ones(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optmerge.runner.applicable.METHOD_CONFIGS", {"dare": METHOD_CONFIGS["dare"]})
    own = {"name": "custom", "path": "mine.py:Halved"}
    (tmp_path / "mine.py").write_text(
        "from optmerge.merging.methods.own import PartsMethod\n\n\n"
        "class Halved(PartsMethod):\n"
        "    sees = 'tensor'\n\n"
        "    def parts(self, vectors, kind):\n"
        "        return [vector / 2 for vector in vectors]\n"
    )
    made = settings(baselines={"grid": [0.5], "methods": [{"name": "dare", "drop": 0.0}, own]})
    rows = rows_of(measured(made, tmp_path, methods=None))
    assert rows.keys() == {"base", "expert:a", "expert:b", "average", "uniform:0.5", "dare", "dare[drop=0.0]", "Halved"}
    assert rows["Halved"].select == pytest.approx(rows["uniform:0.5"].select, rel=1e-4)
    assert rows["dare[drop=0.0]"].scale == 0.3


def test_what_does_not_fit_is_left_out_with_its_reason(settings: Settings, tmp_path: Path) -> None:
    made = settings()
    made["experts"] |= {"c": made["experts"]["a"]}
    board = measured(made, tmp_path, methods=["average", "slerp", "regmean"])
    assert board.left_out == {
        "slerp": "it merges 1 to 2 experts, and there are 3",
        "regmean": "it needs inputs of every expert, and no task has the expert c",
    }
    with pytest.raises(ConfigError, match=r"no method 'iso_c'.*Did you mean 'iso-c'"):
        measured(made, tmp_path, methods=["iso_c"])


def test_methods_that_read_labels_need_them(settings: Settings, tmp_path: Path) -> None:
    (reader, *_) = (name for name, config in METHOD_CONFIGS.items() if config.facts.labels)
    rows = rows_of(measured(settings(), tmp_path, methods=[reader]))
    assert rows[reader].error is None
    assert rows[reader].needs[-1] == "labels"
    made = settings()
    for task in made["tasks"].values():
        del task["label"]
    board = measured(made, tmp_path, methods=[reader, "average"], folder=tmp_path / "without")
    assert "it reads labels (tasks.a.label: missing;" in board.left_out[reader]
    assert reader not in rows_of(board)
    assert board.metric == "agreement"


def test_folders_that_hold_something_else_are_refused(searched: RunView, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds another run"):
        measured(settings(), tmp_path, folder=searched.folder)
    measured(settings(), tmp_path, methods=["average"])
    with pytest.raises(RunError, match="holds another leaderboard"):
        measured(settings(objective={"terms": [{"name": "entropy"}]}), tmp_path)
    other = settings(splits={"fit": 24, "select": 16, "report": 20})
    with pytest.raises(RunError, match="what differs: the report examples of the task a"):
        measured(other, tmp_path, folder=tmp_path / "other", against=[searched.folder])
    fewer = settings(splits={"fit": 32, "select": 8, "report": 30})
    with pytest.raises(RunError, match="what differs: the number of select examples of the task a"):
        measured(fewer, tmp_path, folder=tmp_path / "fewer", against=[searched.folder])
    with pytest.raises(RunError, match="is not a run"):
        measured(settings(), tmp_path, against=[tmp_path / "board"])


def test_language_models_whose_embeddings_are_tied(language_settings: Settings, tmp_path: Path) -> None:
    board = measured(language_settings(), tmp_path, methods=["iso-c"])
    rows = rows_of(board)
    assert rows.keys() == {"base", "expert:a", "expert:b", "average", "uniform:0.3", "uniform:0.6", "iso-c"}
    assert all(row.error is None for row in rows.values())
    assert rows["average"].kind == "uniform"


def test_the_last_stage_s_terms_of_the_model_judge(settings: Settings) -> None:
    last = {"terms": [{"name": "entropy"}, {"name": "smoothness"}], "select": [{"name": "expert-kl"}]}
    stages = [
        {"driver": "adam", "evaluations": 2},
        {"driver": "cma", "evaluations": 2, "objective": {"terms": last["terms"]}},
    ]
    made = settings(schedule=stages)
    del made["driver"]
    config = board_search(build_config(made, root=Path()))
    assert [term.name for term in config.objective.terms] == ["entropy"]
    config = board_search(build_config(settings(objective=last), root=Path()))
    assert [term.name for term in config.objective.terms] == ["expert-kl"]
    assert config.objective.select is None


def test_what_a_search_makes_of_its_experts_is_not_made_here(settings: Settings) -> None:
    config = board_search(build_config(settings(method="dare", directions=["experts", "iso-c"]), root=Path()))
    assert config.method.name == "task_arithmetic"
    assert config.directions == ["experts"]
