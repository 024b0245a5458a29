"""Which views watch a search that a user starts, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optmerge.config.schema import SearchConfig
from optmerge.tracking import standard_sinks
from optmerge.tracking.sinks import sink_name


def _config(mode: str) -> SearchConfig:
    return SearchConfig.model_validate(
        {
            "base": "b",
            "experts": {"e": "e"},
            "tasks": {"t": {"expert": "e", "data": "d.jsonl"}},
            "objective": {"terms": [{"name": "entropy"}]},
            "tracking": {"wandb": mode},
        }
    )


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_standard_sinks(mode: str, terminal: bool) -> None:
    names = [sink_name(sink) for sink in standard_sinks(_config(mode), terminal=terminal).active]
    assert ("Weights & Biases" in names) == (mode == "offline")
    assert ("the terminal display" in names) == terminal
    assert {"the Optuna mirror", "the report"} <= set(names)


def test_views_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from optmerge.tracking import compare, optuna_mirror, plots, report, sync, terminal, view\n"
        "from optmerge.tracking import trackio_tracker, wandb_tracker\n"
        "print([name for name in ('torch', 'wandb', 'optuna', 'matplotlib', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
