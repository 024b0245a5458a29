"""The sweep of the docs, expanded by W&B's own agent code into commands that `optmerge search` takes.

wandb ships no schema of sweeps (its server checks them), so what is checked here is what its agent would run.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from optmerge.cli.app import make_app
from optmerge.config.load import load_config

SWEEP = Path(__file__).parent.parent / "docs/sweep.yaml"
KEYS = {"program", "name", "method", "metric", "run_cap", "early_terminate", "parameters", "command"}
SEARCH = """
base: zoo/base
experts: {a: zoo/a}
tasks: {t: {expert: a, data: d.jsonl}}
objective: {terms: [{name: entropy}]}
"""


def _sweep() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SWEEP.read_text())
    return found


def _trials(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values, and of the ends of the ranges."""
    ends = {
        name: setting.get("values") or ([setting["value"]] if "value" in setting else [setting["min"], setting["max"]])
        for name, setting in parameters.items()
    }
    return [dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())]


def _command(sweep: dict[str, Any], trial: dict[str, Any]) -> list[str]:
    """What the agent would run, as `wandb.wandb_agent` puts it together."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    given = create_sweep_command_args({"args": {name: {"value": value} for name, value in trial.items()}})
    made: list[str] = []
    for part in create_sweep_command(sweep["command"]):
        made += given[part[2:-1]] if part.startswith("${") else [part]
    return made


def test_it_is_a_sweep_of_known_parts() -> None:
    sweep = _sweep()
    assert set(sweep) == KEYS
    assert sweep["method"] in ("bayes", "random", "grid")
    assert sweep["metric"] == {"name": "objective/best", "goal": "minimize"}
    assert sweep["early_terminate"]["type"] == "hyperband"


def test_every_trial_is_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = _sweep()
    (tmp_path / "search.yaml").write_text(SEARCH)
    (tmp_path / "d.jsonl").touch()
    stand_in = tmp_path / "optmerge"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WANDB_RUN_ID": "abc123"}
    trials = _trials(sweep["parameters"])
    assert len(trials) > 8
    for trial in (trials[0], trials[-1]):
        command = _command(sweep, trial)
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
        verb, *arguments = done.stdout.splitlines()
        assert verb == "search", shlex.join(command)
        group: Any = typer.main.get_command(make_app())
        context = group.commands["search"].make_context("search", arguments)
        assert context.params["wandb"] == "online"
        assert context.params["output"] == Path("runs/sweep/abc123")
        assert context.params["sets"] == [f"{name}={value}" for name, value in trial.items()]
    for trial in trials:
        config = load_config(tmp_path / "search.yaml", overrides=[f"{name}={value}" for name, value in trial.items()])
        assert config.driver.name == "cma"
        assert config.seed == trial["seed"]
        assert config.budget.evaluations == 200
