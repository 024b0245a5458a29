"""All finished runs below a folder in one table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optmerge.errors import RunError
from optmerge.tracking.ranking import rank_runs
from tests.cli.conftest import run

__all__ = ["run"]


def test_the_best_on_report_comes_first(fake, tmp_path: Path) -> None:
    fake("runs/a").baselines().search(6).finish()
    fake("runs/deep/b", seed=1, gain=0.1, settings_update={"driver": {"name": "cma", "sigma": 0.1}}).baselines().search(
        9
    ).finish()
    ranking = rank_runs(tmp_path / "runs")
    (group,) = ranking.groups
    assert [(run.name, run.driver, run.space, run.evaluations) for run in group.runs] == [
        ("deep/b", "cma", "tensor-wise", 9),
        ("a", "adam", "tensor-wise", 6),
    ]
    assert group.runs[0].mean == pytest.approx(0.897)
    assert group.runs[0].interval == pytest.approx((0.877, 0.917))
    assert group.runs[0].seconds == 100.0
    assert group.runs[0].objective == "1 expert-kl"
    assert (group.metric, group.tasks) == ("accuracy", ("sentiment", "author"))
    assert not ranking.left_out
    text = ranking.markdown()
    assert text.index("deep/b") < text.index("| a ")
    assert "0.897 [0.877, 0.917]" in text
    json.dumps(ranking.to_dict())


@pytest.mark.parametrize("what", ["models", "data", "report_examples", "metric"])
def test_what_cannot_be_compared_is_in_groups_of_its_own(fake, tmp_path: Path, what: str) -> None:
    for name in ("runs/a", "runs/b"):
        fake(name).baselines().search(2).finish()
    changed = {
        "models": {"base": {"reference": "zoo/other", "sha256": "1" * 64}},
        "data": {"sentiment": "another", "author": "author-digest"},
        "report_examples": {"sentiment": "0", "author": "1"},
    }
    file, change = ("result.json", {"metric": "agreement"}) if what == "metric" else ("manifest.json", {})
    path = tmp_path / "runs/b" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | (change or {what: changed[what]})))
    ranking = rank_runs(tmp_path / "runs")
    assert sorted(run.name for group in ranking.groups for run in group.runs) == ["a", "b"]
    assert len(ranking.groups) == 2
    assert "cannot be compared" in ranking.markdown()


def test_other_objectives_on_select_are_named(fake, tmp_path: Path) -> None:
    fake("runs/a").baselines().search(2).finish()
    entropy = {"objective": {"terms": [{"name": "entropy", "weight": 1.0}], "select": None}}
    fake("runs/b", settings_update=entropy).baselines().search(2).finish()
    text = rank_runs(tmp_path / "runs").markdown()
    assert "2 objectives: 1 expert-kl; 1 entropy" in text


def test_what_is_damaged_or_unfinished_is_named_and_passed_over(fake, tmp_path: Path) -> None:
    whole = fake("runs/whole").baselines().search(2).finish()
    fake("runs/half").baselines().search(2).ended("interrupted", "Ctrl-C")
    for name in ("torn", "shape", "yaml"):
        shutil.copytree(whole.folder, tmp_path / "runs" / name)
    (tmp_path / "runs/torn/result.json").write_text("{")
    (tmp_path / "runs/shape/manifest.json").write_text('{"models": []}')
    (tmp_path / "runs/yaml/search.yaml").write_text("a: [")
    ranking = rank_runs(tmp_path / "runs")
    assert [run.name for group in ranking.groups for run in group.runs] == ["whole"]
    assert list(ranking.left_out) == ["half", "shape", "torn", "yaml"]
    assert "Ctrl-C" in ranking.left_out["half"]
    assert all("damaged" in ranking.left_out[name] for name in ("torn", "shape", "yaml"))
    assert all(name in ranking.markdown() for name in ranking.left_out)


def test_a_search_file_alone_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("base: b\n")
    with pytest.raises(RunError, match="no run in"):
        rank_runs(tmp_path)
    with pytest.raises(RunError, match="is no folder"):
        rank_runs(tmp_path / "nowhere")


def test_the_verb_prints_it(fake, run, tmp_path: Path) -> None:
    fake("runs/a").baselines().search(2).finish()
    assert "| a " in run("leaderboard", tmp_path / "runs").out
    found = json.loads(run("leaderboard", tmp_path / "runs", "--json").out)
    assert found["groups"][0]["runs"][0]["name"] == "a"
    refused = run("leaderboard", tmp_path / "nowhere")
    assert refused.code == 2
    assert "optmerge leaderboard runs" in refused.err
