"""One parameter of a mergekit configuration: filters, gradients, levels."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.errors import ConfigError
from optmerge.importers.mergekit_settings import Parameter, evaluate, has_gradient, lookup

WEIGHT = Parameter("weight", float)
NORMALIZE = Parameter("normalize", bool)
UP = "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("setting", "at", "expected"),
    [
        (0.3, 0.5, 0.3),
        ("1e-05", 0.0, 1e-5),  # YAML reads it as a text
        ([0.1, 0.9], 1 / 3, 0.1 + 0.8 / 3),
        ([0.1, 0.2, 0.3, 0.4], 0.0, 0.1),
        ([0.1, 0.2, 0.3, 0.4], 1.0, 0.4),
        ([0.0, 1.0, 0.0], 0.25, 0.5),
        ({"filter": "mlp", "value": 2}, 0.0, 2.0),
        ({"filter": "attn", "value": 2}, 0.0, None),
        ([{"filter": "up_proj", "value": 1}, {"filter": "mlp", "value": 2}, {"value": 3}], 0.0, 1.0),
        ([{"filter": "attn", "value": 1}, {"filter": "*", "value": [2, 4]}], 0.5, 3.0),
        ([], 0.0, None),
    ],
)
def test_a_setting(setting: Any, at: float, expected: float | None) -> None:
    found = evaluate(setting, UP, at, WEIGHT)
    assert found is expected or found == pytest.approx(expected)


@given(values=st.lists(st.floats(-2, 2), min_size=1, max_size=6), layer=st.integers(0, 5))
def test_a_gradient_of_as_many_values_as_layers_is_those_values(values: list[float], layer: int) -> None:
    if layer < len(values):
        at = layer / (len(values) - 1) if len(values) > 1 else 1.0
        assert evaluate(list(values), UP, at, WEIGHT) == pytest.approx(values[layer], abs=1e-12)


def test_truth_values_are_not_interpolated() -> None:
    assert evaluate([True, False], UP, 0.6, NORMALIZE) is True
    assert evaluate([True, False], UP, 1.0, NORMALIZE) is False
    assert evaluate("false", UP, 1.0, NORMALIZE) is False


def test_levels() -> None:
    own = {"weight": {"filter": "attn", "value": 1.0}}  # matches nothing here, so the next level has the word
    assert lookup(WEIGHT, [own, None, {"weight": 2.0}, {"weight": 3.0}], UP, at=0.0) == 2.0
    assert lookup(Parameter("density", float, default=1.0), [own], UP, at=0.0) == 1.0
    with pytest.raises(ConfigError, match=r"'weight' is missing for the tensor model.layers.3"):
        lookup(Parameter("weight", float, required=True), [own], UP, at=0.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("much", "'much'; expected a number"),
        ([{"filter": "mlp"}], "among its filters; expected"),
        ([{"value": 1}, 2], None),
        ([2, {"value": 1}], "has 2 among its filters"),
    ],
)
def test_what_is_no_setting(setting: Any, message: str | None) -> None:
    if message is None:
        assert evaluate(setting, UP, 0.0, WEIGHT) == 1.0  # the first that matches counts, and mergekit reads no further
        return
    with pytest.raises(ConfigError, match=message):
        evaluate(setting, UP, 0.0, WEIGHT)


def test_which_settings_tell_layers_apart() -> None:
    assert has_gradient([0.1, 0.9])
    assert has_gradient([{"filter": "mlp", "value": [0, 1]}, {"value": 1}])
    assert not has_gradient([{"filter": "mlp", "value": 1}, {"value": [1]}])
    assert not has_gradient(0.5)
