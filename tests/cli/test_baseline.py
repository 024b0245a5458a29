"""``optmerge baseline`` over one small zoo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run
from tests.zoo import make_zoo, zoo_settings


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("baseline")
    made = zoo_settings(make_zoo(root, "bert"), splits={"fit": 4, "select": 3, "report": 3})
    (root / "search.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return root / "search.yaml"


def test_one_leaderboard(run: Run, folder: Path, file: Path) -> None:
    shown = run("baseline", file, "--methods", "average, ties", "--tune", "2")
    assert shown.code == 0
    for told in ("uniform:0.3", "ties (tuned)", "over uniform", "expert:a", "Ordered by the objective on select"):
        assert told in shown.out
    written = file.parent / "run-baseline"
    assert f"Leaderboard: {written / 'leaderboard.md'}" in shown.out
    names = {path.name for path in written.iterdir()}
    assert {"leaderboard.json", "leaderboard.md", "leaderboard.png", "leaderboard.yaml"} <= names
    assert "delta" not in names

    facts = json.loads(run("baseline", file, "--methods", "average,ties", "--tune", "2", "--json").out)
    assert facts == {"page": str(written / "leaderboard.md"), **json.loads((written / "leaderboard.json").read_text())}
    tuned = next(line for line in facts["lines"] if line["name"] == "ties (tuned)")
    assert tuned["evaluations"] == 2


def test_mistakes_are_told(run: Run, folder: Path, file: Path) -> None:
    wrong = run("baseline", file, "--methods", "tyes")
    assert wrong.code == 2
    assert "Did you mean 'ties'?" in wrong.err
    missing = run("baseline", file, "--methods", "ties", "--against", "nowhere")
    assert missing.code == 2
    assert "nowhere is not a run" in missing.err
