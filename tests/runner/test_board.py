"""Leaderboards as data, what fits a search, and the memory of making a delta."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.config.methods import METHOD_CONFIGS, Facts, MethodSettings
from optmerge.runner.applicable import applicable, named_methods
from optmerge.runner.board import BoardRow, Leaderboard, RowStore, make_board
from optmerge.runner.folder import RunFolder
from optmerge.runner.making import MemoryWatch

Scores = dict[str, dict[str, np.ndarray]]


def scores(*shares: float) -> Scores:
    """40 examples a task, of which so large a share is right."""
    return {
        task: {"accuracy": (np.arange(40) < 40 * share).astype(float)}
        for task, share in zip("xyz", shares, strict=False)
    }


def row(name: str, select: float | None, made: Scores, **facts: object) -> tuple[BoardRow, Scores]:
    means = {task: {"accuracy": float(arrays["accuracy"].mean())} for task, arrays in made.items()}
    return BoardRow(name, **{"kind": "method", "select": select, "report": means} | facts), made  # type: ignore[arg-type]


def board(*rows: tuple[BoardRow, Scores]) -> Leaderboard:
    return make_board(rows, folder=Path("board"), metric="accuracy", seed=0, left_out={}, objective=["expert-kl"])


def test_lines_are_ordered_by_select_and_beside_the_best_uniform_merge() -> None:
    made = board(
        row("worst", 2.0, scores(0.1, 0.2)),
        row("broken", None, {}, error="LinAlgError: no"),
        row("uniform:0.3", 0.8, scores(0.5, 0.6), kind="uniform"),
        row("uniform:0.7", 0.9, scores(1.0, 1.0), kind="uniform"),
        row("best", 0.5, scores(0.75, 0.6)),
    )
    assert [line.row.name for line in made.lines] == ["best", "uniform:0.3", "uniform:0.7", "worst", "broken"]
    assert made.uniform == "uniform:0.3"
    best, uniform, _, worst, broken = made.lines
    assert best.difference is not None
    assert best.difference[0] == pytest.approx(0.125)
    assert best.difference[1] < 0.125 < best.difference[2]
    assert best.worst == ("y", 0.6)
    assert uniform.difference is None
    assert worst.mean is not None
    assert worst.mean[0] == pytest.approx(0.15)
    assert (broken.mean, broken.worst, broken.difference) == (None, None, None)


def test_without_uniform_merges_there_is_no_difference() -> None:
    made = board(row("one", 1.0, scores(0.5)))
    assert made.uniform is None
    assert made.lines[0].difference is None
    assert made.to_dict()["lines"][0]["name"] == "one"


def test_rows_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    store = RowStore(RunFolder(tmp_path))
    kept, made = row("ties (tuned)", 0.5, scores(0.75), settings={"density": 0.3}, needs=("weights", "inputs"))
    store.put(kept.name, ["published", 0.3], kept, made)
    found = store.get(kept.name, ["published", 0.3])
    assert found is not None
    assert found[0] == kept
    assert np.array_equal(found[1]["x"]["accuracy"], made["x"]["accuracy"])
    assert store.get(kept.name, ["published", 0.4]) is None
    assert store.get("other", ["published", 0.3]) is None


def test_scores_of_another_row_are_never_read_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two files of a row that takes the place of an older one."""
    store = RowStore(RunFolder(tmp_path))
    store.put("ties", ["old"], *row("ties", 0.5, scores(0.75)))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.put("ties", ["new"], *row("ties", 0.4, scores(0.25)))
    assert store.get("ties", ["old"]) is None
    assert store.get("ties", ["new"]) is None


class LabelledConfig(MethodSettings):
    """Reads labels."""

    facts = Facts(paper="Nobody 2000", cost="none", needs=("saliency",), labels=True, experts=(3, None))


def test_methods_that_do_not_fit_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "base": "base",
        "experts": {"a": "a", "b": "b"},
        "tasks": {"a": {"expert": "a", "data": "a.jsonl"}},
        "objective": "expert-kl",
    }
    monkeypatch.setitem(METHOD_CONFIGS, "labelled", LabelledConfig)
    two = build_config(made, root=Path())
    methods, left_out = applicable(two, ["labelled", "ties", "regmean"])
    assert [method.method_name() for method in methods] == ["ties"]
    assert left_out == {
        "regmean": "it needs inputs of every expert, and no task has the expert b",
        "labelled": "it merges 3 or more experts, and there are 2",
    }
    names = ["a", "b", "c"]
    made["experts"] = {name: name for name in names}
    made["tasks"] = {name: {"expert": name, "data": "a.jsonl"} for name in names}
    three = build_config(made, root=Path())
    assert applicable(three, ["labelled"], no_labels="none")[1] == {"labelled": "it reads labels (none)"}
    assert applicable(three, ["labelled"])[1] == {}


def test_methods_that_a_search_names_itself_have_their_names_there() -> None:
    made = {
        "base": "base",
        "experts": {"a": "a", "b": "b"},
        "tasks": {"a": {"expert": "a", "data": "a.jsonl"}},
        "objective": "expert-kl",
        "directions": ["experts", "iso-c", {"name": "ties", "density": 0.5}, {"name": "spectral", "bands": 2}],
        "baselines": {"methods": ["ties", {"name": "ties", "density": 0.5}, {"name": "dare", "drop": 0.25}]},
    }
    found = named_methods(build_config(made, root=Path()))
    assert {name: config.method_name() for name, config in found.items()} == {
        "ties[density=0.5]": "ties",
        "dare[drop=0.25]": "dare",
    }


def test_memory_that_was_given_back_is_seen() -> None:
    with MemoryWatch() as nothing:
        pass
    size = 64 << 20
    with MemoryWatch() as watch:
        held = torch.ones(size // 4)
        held = held + held
        del held
    assert nothing.peak < size // 4
    assert size <= watch.peak < 3 * size
