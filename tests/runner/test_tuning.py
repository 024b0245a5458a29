"""Tuning: every method's declared settings make a vector whose start is the published method."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from optmerge.config.methods import METHOD_CONFIGS, MethodSettings, TiesConfig
from optmerge.errors import RunFailed
from optmerge.records import Evaluation
from optmerge.runner.making import Maker
from optmerge.runner.tuning import REACH, Tuning


class FakeMaker:
    """Hands out the settings themselves as a problem."""

    def make(self, config: MethodSettings) -> Any:
        return SimpleNamespace(problem=config)


def tuning(config: MethodSettings, select: Any = None) -> Tuning:
    return Tuning(config, cast(Maker, FakeMaker()), select)


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_method_s_vector_starts_at_its_published_settings(name: str) -> None:
    published = METHOD_CONFIGS[name]()
    made = tuning(published)
    variables = made.variables
    assert list(variables.names) == ["scale", *published.tuned()]
    assert made.point(variables.start) == (published, published.facts.scale)
    for corner, factor in ((variables.lower, 1 / REACH), (variables.upper, REACH)):
        config, scale = made.point(corner)
        assert scale == pytest.approx(published.facts.scale * factor)
        for setting, how in published.tuned().items():
            assert how.low <= getattr(config, setting) <= how.high
        untouched = config.model_dump(exclude=set(published.tuned()))
        assert untouched == published.model_dump(exclude=set(published.tuned()))


def bowl(config: TiesConfig, scale: float) -> Evaluation:
    return Evaluation((math.log(config.density) - math.log(0.6)) ** 2 + math.log(scale / 1.7) ** 2)


def test_the_best_point_is_found_and_told(tmp_path: Path) -> None:
    found = tuning(TiesConfig(), bowl).run(tmp_path, evaluations=30, seed=0)
    assert found.evaluations == 30
    assert found.select < 0.25 * bowl(TiesConfig(), 1.0).value
    assert isinstance(found.config, TiesConfig)
    assert found.select == bowl(found.config, found.scale).value
    again = tuning(TiesConfig(), None).run(tmp_path, evaluations=30, seed=0)  # finished: nothing is judged
    assert (again.config, again.scale, again.select) == (found.config, found.scale, found.select)


def test_points_that_fail_are_passed_over(tmp_path: Path) -> None:
    def breaks(config: TiesConfig, scale: float) -> Evaluation:
        if scale != 1.0:
            raise np.linalg.LinAlgError("no convergence")
        return bowl(config, scale)

    with pytest.raises(RunFailed, match="LinAlgError: no convergence"):
        tuning(TiesConfig(), breaks).run(tmp_path, evaluations=8, seed=0)
