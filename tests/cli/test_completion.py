"""What the shells are told: verbs, options, and values that the working directory and the package have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from optmerge.cli.app import VERBS
from optmerge.cli.completion import DTYPES, FORMATS, KEY, join_assignments, runs
from optmerge.config.drivers import DRIVER_CONFIGS
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.export import EXPORTERS
from optmerge.merging.recipe import DTYPES as RECIPE_DTYPES
from optmerge.presets import preset_names
from tests.cli.conftest import Run
from tests.cli.test_imports import probe

Ask = Callable[[str], list[str]]


@pytest.fixture(params=["bash", "zsh", "fish"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, run: Run) -> Ask:
    """What a shell gets to offer for a line that is typed so far."""
    shell: str = request.param

    def call(line: str) -> list[str]:
        words = line.split(" ")
        with monkeypatch.context() as patched:
            patched.setenv("_OPTMERGE_COMPLETE", f"complete_{shell}")
            if shell == "bash":
                patched.setenv("COMP_WORDS", "\n".join(words))
                patched.setenv("COMP_CWORD", str(len(words) - 1))
            patched.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
            patched.setenv("_TYPER_COMPLETE_ARGS", line)
            patched.setenv(KEY, "")  # so that it is as before afterwards
            patched.delenv(KEY)
            result = run()
            assert result.err == ""
        lines = result.out.replace("_arguments '*: :((", "").replace("))'", "").splitlines()
        return [each.split("\t")[0].split('":"')[0].strip('"') for each in lines if each]

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three runs, the first the oldest, and what looks like one."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("elsewhere/deep/third", "runs/sets/second", "runs/first")):
        made = tmp_path / name
        made.mkdir(parents=True)
        (made / "search.yaml").touch()
        (made / "manifest.json").touch()
        os.utime(made, (1e9 - age, 1e9 - age))
    (tmp_path / "runs/examples/demo").mkdir(parents=True)
    (tmp_path / "runs/examples/demo/search.yaml").touch()
    return tmp_path


def test_verbs_options_and_values(ask: Ask, folder: Path) -> None:
    assert set(ask("optmerge ")) == set(VERBS)
    assert ask("optmerge sea") == ["search"]
    assert ask("optmerge search --repr") == ["--reproduce"]
    assert ask("optmerge ls dri") == ["drivers"]
    assert ask("optmerge baseline s.yaml --methods ties,dar") == ["ties,dare", "ties,dare-ties"]
    assert ask("optmerge export runs/first --format che") == ["checkpoint"]
    assert ask("optmerge merge r.yaml --dtype b") == ["bfloat16"]
    drivers = ask("optmerge search s.yaml --set driver=")
    assert {each.removeprefix("driver=") for each in drivers} == set(DRIVER_CONFIGS)


def test_runs(ask: Ask, folder: Path) -> None:
    for verb in ("status", "resume", "report", "compare runs/first"):
        assert set(ask(f"optmerge {verb} ")) == {"runs/sets/second", "runs/first"}
    assert ask("optmerge baseline s.yaml --against runs/f") == ["runs/first"]
    assert ask("optmerge status elsewhere/") == ["elsewhere/deep/third"]


def test_the_latest_run_is_first(folder: Path) -> None:
    assert runs("") == ["runs/sets/second", "runs/first"]
    assert runs(f"{folder}/runs/f") == [f"{folder}/runs/first"]
    assert runs("nowhere/x") == []


@pytest.mark.parametrize(
    ("words", "current", "left", "key"),
    [
        (["optmerge", "search", "--set", "driver", "=", "ad"], 5, ["optmerge", "search", "--set", "ad"], "driver"),
        (["optmerge", "search", "--set", "driver", "="], 4, ["optmerge", "search", "--set", ""], "driver"),
        (["optmerge", "search", "--set", "a", "=", "b", "x"], 6, ["optmerge", "search", "--set", "a=b", "x"], None),
        (["optmerge", "search", "--set", "=", "space", "=", "l"], 6, ["optmerge", "search", "--set", "l"], "space"),
        (["optmerge", "export", "--format", "=", "c"], 4, ["optmerge", "export", "--format", "c"], None),
        (["optmerge", "status", "x", "--json"], 2, ["optmerge", "status", "x"], None),
    ],
)
def test_bash_divides_words_at_the_sign(words: list[str], current: int, left: list[str], key: str | None) -> None:
    asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(current)}
    join_assignments(asked)
    assert asked["COMP_WORDS"].split("\n") == left
    assert int(asked["COMP_CWORD"]) == len(left) - 1
    assert asked.get(KEY) == key


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that --show-completion prints, called as readline calls it."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell is then named
    script = run("--show-completion", "bash").out
    command = f"{script}\nCOMP_WORDS=(optmerge search s.yaml --set driver = ada)\nCOMP_CWORD=6\n"
    command += "_optmerge_completion optmerge\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", command], capture_output=True, text=True, check=True, env=os.environ | {"PATH": path}
    )
    assert done.stdout.split() == ["adam", "adamw"]


def test_completion_imports_nothing_heavy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("optmerge status ", "optmerge search s.yaml --set d", "optmerge baseline s.yaml --methods t"):
        monkeypatch.setenv("_OPTMERGE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words.replace(" ", "\n"))
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        assert probe()[:2] == ("0", [])


def test_installing_writes_into_the_home_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the shell is then named
    for shell, file in (
        ("bash", ".bash_completions/optmerge.sh"),
        ("zsh", ".zfunc/_optmerge"),
        ("fish", ".config/fish/completions/optmerge.fish"),
    ):
        assert run("--install-completion", shell).code == 0
        assert "_OPTMERGE_COMPLETE" in (tmp_path / file).read_text()


def test_names_are_those_that_there_are() -> None:
    assert set(FORMATS) == set(EXPORTERS)
    assert set(DTYPES) == set(RECIPE_DTYPES) - {"auto"}
    assert {"layer-wise", "tensor-wise"} <= set(preset_names("space"))
    assert {"ties", "dare"} <= set(METHOD_CONFIGS)
