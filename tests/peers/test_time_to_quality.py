"""The reference of `benchmarks.time_to_quality` takes the steps of our Adam on the same examples, killed or not."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import harness
from benchmarks.adamerging import AdaMerging
from benchmarks.quality_judge import Judge
from optmerge.config.drivers import AdamConfig
from optmerge.drivers import make_driver
from optmerge.drivers.variables import Variables
from tests.image_zoo import image_settings, make_image_zoo
from tests.peers.conftest import FUSIONBENCH
from tests.zoo import make_zoo, zoo_settings

pytestmark = pytest.mark.peers

STEPS = 4
ENTROPY, CROSS_ENTROPY = (
    {"terms": [{"name": name, "normalise": "none"}], "select": [{"name": name, "normalise": "none"}]}
    for name in ("entropy", "cross-entropy")
)
SPLITS = {"fit": 12, "select": 8, "report": 8}  # a step of the reference, 16 examples a task, is all of fit


def _settings(kind: str, folder: Path) -> dict[str, Any]:
    space = {"granularity": "tensor-wise", "start": 0.3}
    if kind == "vit":
        return image_settings(make_image_zoo(folder, "vit"), heads="own", objective=ENTROPY, space=space) | {
            "splits": SPLITS
        }
    changes: dict[str, Any] = {"objective": ENTROPY, "space": space, "splits": SPLITS}
    settings = zoo_settings(make_zoo(folder, kind), **changes)
    if kind == "llama":
        settings["objective"] = CROSS_ENTROPY
        settings["tasks"] = {
            name: {key: value for key, value in task.items() if key != "label"}
            | {"max_tokens": 3}  # no text is shorter
            for name, task in settings["tasks"].items()
        }
    return settings


@pytest.mark.parametrize("kind", ["bert", "vit", "llama"])
def test_the_reference_takes_our_steps(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ.get(FUSIONBENCH)
    if not environment:
        pytest.skip(f"${FUSIONBENCH} does not name a peer environment; run `make test-peers`")
    monkeypatch.setitem(harness.PEERS, "fusionbench", Path(environment))
    settings = _settings(kind, tmp_path / "zoo")
    judge = Judge(settings)
    for step in (STEPS // 2, STEPS):  # the second goes on from the first's files, in a process of its own
        reference = AdaMerging(tmp_path / "reference", judge, settings, every=1, threads=1)
        reference.advance(step, limit=60.0)
    points = reference.points
    assert [point.step for point in points] == list(range(STEPS + 1))
    assert all(later.seconds > earlier.seconds for earlier, later in pairwise(points))

    space = judge.problem.space
    driver = make_driver(
        AdamConfig(lr=1e-3),
        Variables(tuple(space.names), space.lower, space.upper, space.start),
        seed=np.random.SeedSequence(0),
        fit_sizes={task: SPLITS["fit"] for task in judge.problem.calibration.tasks},
        budget=STEPS + 1,
    )
    slopes = []
    for point in points:
        (candidate,) = driver.ask()
        evaluation = judge.fit(candidate)
        assert evaluation.gradient is not None
        slopes.append(evaluation.gradient)
        theirs = space.encode(judge.table_of(point.coefficients)[:, judge.problem.columns])
        moved = np.abs(slopes).max(0) > 1e-4  # where there is nothing but rounding, Adam blows it up
        assert moved.mean() > 0.5
        np.testing.assert_allclose(candidate.vector[moved], theirs[moved], atol=2e-5)
        assert point.select == pytest.approx(judge.select(candidate.vector).value, rel=1e-4)
        driver.tell([candidate], [evaluation])
