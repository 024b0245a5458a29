"""The word "searched": the values of a method's paper, or some over the declared range."""

from __future__ import annotations

from typing import Any

import pytest

from optmerge.config.grids import grid_of, with_grids
from optmerge.config.methods import METHOD_CONFIGS, Searched


@pytest.mark.parametrize(
    ("how", "options", "values"),
    [
        (Searched(0.0, 1.0), {}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (Searched(0.01, 100.0, log=True), {}, [0.01, 0.1, 1.0, 10.0, 100.0]),
        (Searched(0.0, 1.0, grid=(0.9, 0.1, 0.5)), {}, [0.1, 0.5, 0.9]),
        (Searched(1, 4), {"whole_numbers": True}, [1, 2, 3, 4]),
    ],
)
def test_what_searched_stands_for(how: Searched, options: dict[str, Any], values: list[float]) -> None:
    assert grid_of(how, **options) == values


def test_searched_becomes_a_list_and_the_rest_stays() -> None:
    made = with_grids({"name": "ties", "density": "searched", "normalize": False}, METHOD_CONFIGS["ties"])
    assert made == {"name": "ties", "density": grid_of(METHOD_CONFIGS["ties"].tuned()["density"]), "normalize": False}


def test_a_setting_that_declares_no_values_is_named() -> None:
    with pytest.raises(ValueError, match=r"ties\.normalize is searched.*those that do: density.*normalize: "):
        with_grids({"name": "ties", "normalize": "searched"}, METHOD_CONFIGS["ties"])
