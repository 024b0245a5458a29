"""A search again from its manifest: refused where it would be another, the same to the bit where nothing differs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import optmerge
from optmerge.api import Reproduced, reproduce
from optmerge.errors import ConfigError, RunError
from optmerge.runner import manifest
from optmerge.runner.reproduce import mismatches, read_manifest, settings_of
from tests.cli.conftest import Run, folder, run  # noqa: F401 - fixtures
from tests.zoo import facts, make_zoo, zoo_settings


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), "bert")


@pytest.fixture(scope="module")
def first(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(work / "cache"))
        patch.setattr(manifest, "git_state", lambda path: None)  # somebody may commit meanwhile
        return optmerge.search(zoo_settings(zoo, output=str(work / "run"), seed=3)).folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "git_state", lambda path: None)


def again(stored_in: Path, to: Path, *overrides: str) -> Reproduced:
    return reproduce(stored_in, overrides=[f"output={json.dumps(str(to))}", *overrides])


def test_the_same_again(first: Path, tmp_path: Path) -> None:
    made = again(first / "manifest.json", tmp_path / "again")
    assert made.mismatches == ()
    assert made.comparison is not None
    assert made.comparison.identical
    assert facts(made.run.folder) == facts(first)
    assert "are identical" in made.comparison.sentence
    written = json.loads((made.run.folder / "reproduction.json").read_text())
    assert written["comparison"]["identical"] is True


def test_a_manifest_alone_is_enough_and_models_may_have_moved(first: Path, zoo: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "manifest.json").write_bytes((first / "manifest.json").read_bytes())
    elsewhere = tmp_path / "base"
    elsewhere.mkdir()
    for file in (zoo / "base").iterdir():
        (elsewhere / file.name).write_bytes(file.read_bytes())
    made = again(moved, tmp_path / "again", f"base={json.dumps(str(elsewhere))}")
    assert made.comparison is not None
    assert made.comparison.identical


def stored(first: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    content = read_manifest(first)
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m["models"]["base"].update(sha256="other"), "the model base"),
        (lambda m: m["data"].update(a="other"), "the data of task a"),
        (lambda m: m["report_examples"].update(a="other"), "report_examples"),
        (lambda m: m["variables"].append("x"), "variables"),
        (lambda m: m["versions"].update(numpy="0.1"), ""),
    ],
)
def test_another_search_is_refused_before_anything_is_written(
    first: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    changed = stored(first, tmp_path, change)
    if not told:  # not a fatal one
        assert [each.grade for each in again(changed, tmp_path / "again").mismatches] == ["likely"]
        return
    with pytest.raises(RunError, match="would be another search") as refused:
        again(changed, tmp_path / "again")
    assert told in str(refused.value)
    assert not (tmp_path / "again").exists()


def test_another_seed_is_another_search(first: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="seed was 3 and is 4"):
        again(first, tmp_path / "again", "seed=4")
    with pytest.raises(RunError, match="budget"):
        again(first, tmp_path / "again", "budget.evaluations=3")


def test_grades(first: Path) -> None:
    was = read_manifest(first)
    now = copy.deepcopy(was)
    now["versions"] |= {"torch": "9", "wandb": "9"}
    now["hardware"]["threads"] = 99
    now["git"] = {"commit": "f" * 40, "clean": True}
    now["models"]["a"]["sha256"] = "other"
    found = mismatches(was, now)
    assert [each.grade for each in found] == ["fatal", "likely", "likely", "harmless", "harmless"]
    assert {each.what for each in found[1:]} == {"threads", "torch", "wandb", "git"}


def test_another_outcome_is_told_with_its_first_difference(first: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    lines = (first / "trajectory.jsonl").read_text().splitlines()
    number = next(place for place, line in enumerate(lines) if json.loads(line)["phase"] == "search")
    changed = json.loads(lines[number])
    changed["value"] += 1e-9
    lines[number] = json.dumps(changed)
    (other / "trajectory.jsonl").write_text("\n".join(lines) + "\n")
    if (first / "vectors.f64").exists():
        (other / "vectors.f64").write_bytes((first / "vectors.f64").read_bytes())
    content = read_manifest(first)
    content["outcome"]["trajectory"] = "other"
    (other / "manifest.json").write_text(json.dumps(content))
    made = again(other, tmp_path / "again")
    assert made.comparison is not None
    assert not made.comparison.identical
    assert made.comparison.first == number
    assert f"from record {number} on" in made.comparison.sentence


def test_what_is_no_manifest(tmp_path: Path, first: Path) -> None:
    with pytest.raises(RunError, match="There is no manifest"):
        read_manifest(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_manifest(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(RunError, match="is no manifest"):
        read_manifest(tmp_path / "list.json")
    old = read_manifest(first)
    del old["search"]
    with pytest.raises(ConfigError, match="older optmerge"):
        settings_of(old, tmp_path / "old.json")


def test_the_verb(run: Run, first: Path, tmp_path: Path) -> None:  # noqa: F811
    said = run("search", "--reproduce", first / "manifest.json", "--output", tmp_path / "again", "--quiet")
    assert said.code == 0
    assert "records of the trajectory are identical" in said.out
    assert "Everything is as it was" in said.err
    both = run("search", "search.yaml", "--reproduce", first / "manifest.json")
    assert both.code == 2
    assert "not both" in both.err
    assert run("search").code == 2
