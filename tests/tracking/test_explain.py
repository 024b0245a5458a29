"""An explanation's words, page, tables and pictures, from facts written down by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optmerge.tracking.explain_page import sentences, shortened, write_explanation


def knockout(direction: str, group: str, rise: float, **changes: Any) -> dict[str, Any]:
    return {
        "direction": direction,
        "group": group,
        "layer": None,
        "kind": "layer",
        "coefficient": 0.4,
        "rise": rise,
        "low": rise - 0.01,
        "high": rise + 0.01,
        "per_task": {"topic": [2 * rise, 2 * rise - 0.02, 2 * rise + 0.02], "tone": [0.0, -0.01, 0.01]},
        "error": None,
    } | changes


def variable(name: str, fisher: float, move: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "value": 0.4,
        "gradient": 0.1,
        "gradient_error": 0.02,
        "fisher": fisher,
        "fisher_error": 0.5 * fisher,
        "curvature": 1.0,
        "move": move,
    }


@pytest.fixture
def found() -> dict[str, Any]:
    groups = ["embedding", *(f"layer.{n}" for n in range(4))]
    return {
        "run": "first",
        "objective": 0.5,
        "per_task": {"topic": 0.5, "tone": 0.25},
        "directions": ["news", "mood"],
        "coefficients": {
            "rows": ["embedding", "layer.0", "layer.1"],
            "kinds": ["embedding", "attention", "mlp"],
            "values": {
                "news": [[0.2, None, None], [None, 0.4, 0.6], [None, -0.1, 1.2]],
                "mood": [[0.1, None, None], [None, 0.3, 0.3], [None, 0.2, 0.1]],
            },
        },
        "sensitivity": {
            "objective": 0.4,
            "batches": 16,
            "curvature_examples": 24,
            "why_no_curvature": "",
            "dimension": 3,
            "variables": [
                variable("layer.0/news", 0.04, 0.02),
                variable("layer.1/news", 0.01, 0.2),
                variable("layer.1/mood", 0.001, None),
            ],
            "checks": [{"name": "layer.0/news", "moved": 0.02, "rise": 0.0104}],
        },
        "why_no_sensitivity": "",
        "ablation": {
            "granularity": "layer",
            "blocks": [knockout(who, group, 0.02 * n) for who in ("news", "mood") for n, group in enumerate(groups)],
        },
        "reliance": [
            knockout("news", "model", 0.25),
            knockout("mood", "model", 0.1, per_task={"topic": [-0.05, -0.06, -0.04], "tone": [0.2, 0.1, 0.3]}),
        ],
        "droppable": [{**knockout("mood", "several", 0.001), "groups": groups[:4], "of": 5}],
        "cheap": False,
        "seconds": 1.0,
    }


def test_the_sentences(found: dict[str, Any]) -> None:
    topic, tone, mood, moves = sentences(found)
    assert topic == (
        "topic relies on news (+100.0 % [+96.0, +104.0] without it); "
        "it would be better without mood (-10.0 % [-12.0, -8.0] without it)."
    )
    assert tone == "tone relies on mood (+80.0 % [+40.0, +120.0] without it)."  # news' interval holds 0
    assert mood == (
        "Of mood, embedding, layers 0-2 could be dropped together: +0.2 % [-1.8, +2.2] in the objective "
        "(4 of 5 groups)."
    )
    assert "layer.0/news (by 0.02)" in moves
    assert "+1.04 %" in moves


def test_a_task_that_needs_nobody_and_one_without_error(found: dict[str, Any]) -> None:
    found["per_task"]["tone"] = 0.0
    for entry in found["reliance"]:
        entry["per_task"] = {"topic": [0.01, -0.01, 0.03], "tone": [0.2, 0.1, 0.3]}
    topic, tone, *_ = sentences(found)
    assert topic == "topic relies on no single expert."
    assert tone == "tone relies on news (+0.2 without it), then mood (+0.2 without it)."


def test_an_objective_of_nothing_has_no_shares(found: dict[str, Any], tmp_path: Path) -> None:
    found["objective"], found["per_task"] = 0.0, {"topic": 0.0, "tone": 0.0}
    found["sensitivity"] |= {"checks": [], "curvature_examples": 0, "why_no_curvature": "the objective is 0 here"}
    found["sensitivity"]["variables"] = [variable("layer.0/news", 0.0, None)]
    text = write_explanation(tmp_path, found).read_text()
    assert "topic relies on news (+0.5 without it)" in text
    assert "How far a variable may move is not known: the objective is 0 here." in text


def test_files_of_an_explanation(found: dict[str, Any], tmp_path: Path) -> None:
    page = write_explanation(tmp_path, found)
    folder = page.parent
    text = page.read_text()
    assert text.isascii()
    for name in ("coefficients", "reliance", "sensitivity", "ablation"):
        assert f"({name}.png)" in text
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 200
        assert (pixels < 250).mean() > 0.02
    assert json.loads((folder / "explain.json").read_text()) == json.loads(json.dumps(found))
    rows = list(csv.DictReader((folder / "ablation.csv").read_text().splitlines()))
    assert len(rows) == 10
    assert (rows[1]["direction"], rows[1]["group"], float(rows[1]["rise topic"])) == ("news", "layer.0", 0.04)
    assert len((folder / "sensitivity.csv").read_text().splitlines()) == 1 + 3
    assert all(line in text for line in sentences(found))


def test_what_was_left_out_has_no_picture(found: dict[str, Any], tmp_path: Path) -> None:
    found |= {"sensitivity": None, "why_no_sensitivity": "the objective's accuracy has no gradient"}
    found["ablation"] = {"granularity": None, "blocks": []}
    text = write_explanation(tmp_path, found).read_text()
    assert "Not measured: the objective's accuracy has no gradient." in text
    assert "ablation.png" not in text
    assert {path.name for path in (tmp_path / "explain").iterdir()} == {
        "explain.md",
        "explain.json",
        "coefficients.png",
        "reliance.png",
        "reliance.csv",
    }


def test_the_base_relies_on_nobody(found: dict[str, Any], tmp_path: Path) -> None:
    found |= {"reliance": [], "droppable": [], "ablation": {"granularity": "layer", "blocks": []}}
    text = write_explanation(tmp_path, found).read_text()
    assert "every coefficient is 0" in text
    assert "reliance.png" not in text


def test_neighbouring_layers_are_a_range() -> None:
    assert shortened([f"layer.{n}.mlp" for n in (0, 1, 3)]) == "layers 0-1, 3 mlp"
    assert shortened(["bert.encoder.layer.3.output.dense.weight"]) == "bert.encoder.layer.3.output.dense.weight"
