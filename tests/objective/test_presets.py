"""Every preset says what it is and is a valid objective."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optmerge.config.objectives import TERM_CONFIGS, ObjectiveConfig
from optmerge.objective import Objective

FOLDER = Path(__file__).parents[2] / "objectives"
PRESETS = sorted(FOLDER.glob("*.yaml"))


def test_every_term_has_a_preset_of_its_name() -> None:
    assert {path.stem for path in PRESETS} >= set(TERM_CONFIGS)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.stem}: ")
    for word in ("# Paper:", "# Cost:", "# Run:   optmerge search"):
        assert word in text
    config = ObjectiveConfig.model_validate(yaml.safe_load(text))
    objective = Objective(config, ["a"], {"a": 3})
    assert objective.labelled == ("# Labels: of every split" in text)
    assert ("gradient" in text) != objective.differentiable
