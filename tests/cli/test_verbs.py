"""The verbs that need no model, and how every verb fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optmerge.cli.app import VERBS
from optmerge.config.drivers import DRIVER_CONFIGS
from tests.cli.conftest import Run


def test_help_lists_every_verb_in_ascii(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    assert result.out.isascii()
    assert all(f"\n  {verb} " in result.out for verb in VERBS)
    assert result.out.count("...") == 1  # "[ARGS]..."; no summary is cut


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.code == 0
    assert result.out.isascii()
    assert "--json" in result.out


def test_version(run: Run) -> None:
    from optmerge import __version__

    assert run("--version").out == f"{__version__}\n"


def test_unknown_verb_and_option_have_near_matches(run: Run) -> None:
    assert run("serch").code == 2
    assert "Did you mean 'search'?" in run("serch").err
    assert run("search", "--limt", "3", "x.yaml").code == 2


def test_init_writes_a_file_that_validates(run: Run, folder: Path) -> None:
    assert run("init").code == 0
    text = (folder / "search.yaml").read_text()
    assert text.startswith("#")
    refused = run("validate", "search.yaml")
    assert refused.code == 2
    assert "tasks.sentiment.data: there is no file data/sentiment.jsonl." in refused.err
    (folder / "data").mkdir()
    for name in ("sentiment", "topic"):
        (folder / "data" / f"{name}.jsonl").touch()
    assert run("validate", "search.yaml").code == 0
    again = run("init")
    assert again.code == 2
    assert "search.yaml exists and is not overwritten" in again.err
    assert (folder / "search.yaml").read_text() == text


@pytest.mark.parametrize("key", ["methods", "schedule", "baselines"])
def test_what_init_shows_in_comments_can_be_taken(run: Run, folder: Path, key: str) -> None:
    assert run("init").code == 0
    (folder / "data").mkdir()
    for name in ("sentiment", "topic"):
        (folder / "data" / f"{name}.jsonl").touch()
    text = (folder / "search.yaml").read_text()
    assert text.count(f"\n# {key}: ") == 1
    text = text.replace(f"\n# {key}: ", f"\n{key}: ")
    driver = "driver: {name: adam, lr: 0.02}\n"
    text = text.replace(driver, {"methods": "driver: cma\n", "schedule": ""}.get(key, driver))
    (folder / "search.yaml").write_text(text)
    result = run("validate", "search.yaml")
    assert result.code == 0, result.err


def test_init_with_everything_given(run: Run, folder: Path) -> None:
    for name in ("a b.jsonl", "c.csv"):
        (folder / name).touch()
    made = run(
        *("init", "deep/x.yaml", "--base", "org/base@v1", "--expert", "no=org/e: 1", "--expert", "two=m+adapter"),
        *("--task", f"no={folder}/a b.jsonl", "--task", f"two={folder}/c.csv", "--json"),
    )
    assert json.loads(made.out) == {"file": "deep/x.yaml"}
    config = json.loads(run("validate", "deep/x.yaml", "--json").out)["config"]
    assert config["base"] == "org/base@v1"
    assert config["experts"] == {"no": "org/e: 1", "two": "m+adapter"}
    assert config["tasks"]["no"]["data"] == f"{folder}/a b.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--expert", "x"], "expected NAME=VALUE"),
        (["--expert", "x=a", "--expert", "x=b"], "was given already"),
        (["--expert", "news=a", "--task", "new=b"], "there is no expert 'new'; expected one of news. "),
    ],
)
def test_init_refuses(run: Run, folder: Path, arguments: list[str], message: str) -> None:
    result = run("init", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not list(folder.iterdir())


def test_validate_tells_a_typo_with_its_near_match(run: Run, folder: Path) -> None:
    run("init")
    result = run("validate", "search.yaml", "--set", "driver.lrr=1", "--set", "seed=none")
    assert result.code == 2
    assert "driver.lrr: unknown key for adam. Did you mean 'lr'?" in result.err
    assert "seed is" in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_ls_shows_everything_there_is(run: Run) -> None:
    listing = json.loads(run("ls", "--json").out)
    assert [entry["name"] for entry in listing["drivers"]] == list(DRIVER_CONFIGS)
    assert {entry["name"] for entry in listing["spaces"]} >= {"layer-wise", "tensor-wise"}
    assert {entry["name"]: entry["labels"] for entry in listing["objectives"]}["accuracy"] == "yes"
    assert "iso-c" in run("ls", "methods").out
    assert "spaces" not in run("ls", "drivers").out
    assert run("ls", "space").code == 2
    assert "Did you mean 'spaces'?" in run("ls", "space").err


@pytest.mark.parametrize("verb", ["status", "report", "resume", "explain"])
def test_verbs_on_a_folder_that_is_no_run(run: Run, folder: Path, verb: str) -> None:
    result = run(verb, ".")
    assert result.code == 2
    assert "search.yaml" in result.err
    assert "Traceback" not in result.err


def test_other_refusals(run: Run, folder: Path) -> None:
    for arguments, message in {
        ("compare", "a"): "expected two or more",
        ("export", "a", "--format", "mergkit", "--to", "x"): "Did you mean 'mergekit'?",
        ("merge", "a.yaml", "--to", "x", "--dtype", "float31"): "Did you mean 'float32'",
        ("merge", "a.yaml", "--to", "x"): "no recipe file a.yaml",
        ("plan", "a.yaml"): "There is no file a.yaml",
        ("try", "a", "text"): "not a run",
    }.items():
        result = run(*arguments)
        assert (result.code, message in result.err) == (2, True), result.err


def test_clean_shows_then_deletes(run: Run, folder: Path, tmp_path: Path) -> None:
    assert "Nothing is cached" in run("clean").out
    (tmp_path / "cache" / "hashes").mkdir(parents=True)
    (tmp_path / "cache" / "hashes" / "x.json").write_text("12345")
    shown = run("clean")
    assert "hashes" in shown.out
    assert "5 B" in shown.out
    assert (tmp_path / "cache" / "hashes" / "x.json").exists()
    assert json.loads(run("clean", "--yes", "--json").out)["nbytes"] == 5
    assert not (tmp_path / "cache" / "hashes").exists()
