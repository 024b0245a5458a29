"""The demo's search again, from its manifest, by an installed wheel in a new environment; `make test-reproduce`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.reproduce

Done = subprocess.CompletedProcess[str]
Again = Callable[..., Done]


@pytest.fixture(scope="module")
def place() -> Path:
    """What `make test-reproduce` has made: ``first`` is the demo's runs, ``other`` the new environment."""
    named = os.environ.get("OPTMERGE_REPRODUCE")
    if not named:
        pytest.skip("$OPTMERGE_REPRODUCE does not name a folder; run `make test-reproduce`")
    return Path(named).absolute()


@pytest.fixture
def manifest(place: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / "first/adam/manifest.json").read_text())
    return content


@pytest.fixture
def again(place: Path, tmp_path: Path) -> Again:
    """A function that runs the search again in the other environment, with caches of its own."""
    environment = os.environ | {"OPTMERGE_CACHE": str(tmp_path / "cache")}
    environment.pop("PYTHONPATH", None)

    def run(path: Path, *options: str) -> Done:
        command = [place / "other/bin/optmerge", "search", "--reproduce", path, "--output", tmp_path / "again"]
        return subprocess.run(
            [*map(str, command), *options], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )

    return run


def test_the_trajectory_is_identical(place: Path, manifest: dict[str, Any], again: Again, tmp_path: Path) -> None:
    where = "import optmerge; print(optmerge.__file__)"
    shown = subprocess.run([place / "other/bin/python", "-c", where], capture_output=True, text=True, cwd=tmp_path)
    assert "site-packages" in shown.stdout, "the other environment has the wheel, not a checkout"
    done = again(place / "first/adam/manifest.json")
    assert done.returncode == 0, done.stderr
    assert f"Reproduced: all {manifest['outcome']['records']} records of the trajectory are identical." in done.stdout
    told = json.loads((tmp_path / "again/reproduction.json").read_text())
    assert told["comparison"]["identical"]
    assert {each["grade"] for each in told["mismatches"]} <= {"harmless"}


def test_another_torch_is_likely_to_matter_and_is_told(manifest: dict[str, Any], again: Again, tmp_path: Path) -> None:
    manifest["versions"]["torch"] = "2.0.0"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    done = again(tmp_path / "manifest.json")
    assert done.returncode == 0, done.stderr
    assert "likely to matter: torch: was 2.0.0, is " in done.stderr
    assert "are identical" in done.stdout


def refused(done: Done, tmp_path: Path) -> str:
    """The one paragraph of a refusal, before anything was written."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "again").exists()
    return done.stderr.strip().splitlines()[-1]


def test_another_seed_is_another_search(place: Path, again: Again, tmp_path: Path) -> None:
    told = refused(again(place / "first/adam/manifest.json", "--seed", "1"), tmp_path)
    assert "This would be another search" in told
    assert "seed was 0 and is 1" in told


def test_changed_data_are_another_search(place: Path, manifest: dict[str, Any], again: Again, tmp_path: Path) -> None:
    data = Path(manifest["search"]["tasks"]["tweets"]["data"])
    rows = [json.loads(line) for line in data.read_text().splitlines()]  # a row that no split holds may differ
    changed = tmp_path / "tweets.jsonl"
    changed.write_text("".join(json.dumps(row | {"text": row["text"] + " indeed"}) + "\n" for row in rows))
    told = refused(again(place / "first/adam/manifest.json", "--set", f"tasks.tweets.data={changed}"), tmp_path)
    assert "the data of task tweets has changed" in told


def test_a_missing_expert_is_named(place: Path, again: Again, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    told = refused(again(place / "first/adam/manifest.json", "--set", f"experts.tweets={nowhere}"), tmp_path)
    assert str(nowhere) in told
