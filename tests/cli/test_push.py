"""``optmerge push`` asks, shows, and touches nothing unless told to."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import huggingface_hub
import pytest

from tests.cli.conftest import Run
from tests.export.test_push import CARD, StandIn


@pytest.fixture
def merged(folder: Path) -> Path:
    made = folder / "merged"
    made.mkdir()
    (made / "README.md").write_text(CARD)
    (made / "model.safetensors").write_bytes(b"0" * 1500)
    return made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_a_token")
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dry_run_shows_every_file_and_touches_nothing(
    run: Run, merged: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)  # not needed either
    result = run("push", "merged", "me/merged", "--dry-run")
    assert result.code == 0, result.err
    lines = [line.split() for line in result.out.splitlines()]
    assert ["README.md", str(len(CARD)), "B"] in lines
    assert ["model.safetensors", "1.5", "kB"] in lines
    assert "https://huggingface.co/me/merged (private" in result.out
    assert "Nothing was created or uploaded." in result.out
    assert not hub.calls


def test_json_of_a_dry_run(run: Run, merged: Path, hub: StandIn) -> None:
    facts = json.loads(run("push", "merged", "me/merged", "--dry-run", "--public", "--json").out)
    assert facts == {
        "repo_id": "me/merged",
        "url": "https://huggingface.co/me/merged",
        "public": True,
        "files": {"README.md": len(CARD), "model.safetensors": 1500},
        "nbytes": 1500 + len(CARD),
        "notes": [],
        "pushed": False,
    }
    assert not hub.calls


@pytest.mark.parametrize("public", [False, True])
def test_yes_uploads_private_unless_told_otherwise(run: Run, merged: Path, hub: StandIn, public: bool) -> None:
    result = run("push", "merged", "me/merged", "--yes", *(["--public"] if public else []))
    assert result.code == 0, result.err
    assert hub.repos == {"me/merged": not public}
    assert set(hub.uploaded) == {"README.md", "model.safetensors"}
    assert "Pushed to https://huggingface.co/me/merged" in result.out


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 130)])
def test_a_terminal_is_asked(
    run: Run, merged: Path, hub: StandIn, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    result = run("push", "merged", "me/merged")
    assert result.code == code
    assert bool(hub.calls) == (code == 0)
    assert "Upload 2 files to me/merged (private)?" in result.err


def test_without_a_terminal_there_is_no_asking(
    run: Run, merged: Path, hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    result = run("push", "merged", "me/merged")
    assert result.code == 2
    assert "Give --yes" in result.err
    assert not hub.calls


@pytest.mark.parametrize(("lacks", "said"), [("card", "has no model card"), ("token", "hf auth login")])
def test_refusals_are_one_paragraph(
    run: Run, merged: Path, hub: StandIn, lacks: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks == "card":
        (merged / "README.md").unlink()
    else:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    result = run("push", "merged", "me/merged", "--yes")
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1
    assert not hub.calls
