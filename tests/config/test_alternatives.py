"""Choices among methods in a search file: lists, the word "searched", wholes and parts, what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optmerge.config.alternatives import CHOICE, MOST, read_alternative, read_alternatives
from optmerge.config.drivers import DRIVER_CONFIGS, GRADIENT_DRIVERS, NO_GRADIENT_DRIVERS
from optmerge.config.load import build_config, dump_config, load_config
from optmerge.config.methods import LINEAR_METHODS, METHOD_CONFIGS
from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError

TUNED = [(name, key) for name, model in METHOD_CONFIGS.items() for key in model.tuned()]


def build(**changes: Any) -> SearchConfig:
    data = {
        "base": "base",
        "experts": {"law": "law", "code": "code"},
        "tasks": {name: {"expert": name, "data": f"{name}.jsonl", "label": "label"} for name in ("law", "code")},
        "objective": "expert-kl",
        "driver": "cma",
    }
    return build_config(data | changes, root=Path())


def whole(*methods: Any) -> list[Any]:
    return ["experts", {"name": CHOICE, "methods": list(methods)}]


@pytest.mark.parametrize(("name", "key"), TUNED)
def test_every_declared_setting_can_be_searched_as_a_whole(name: str, key: str) -> None:
    """Its values are within what is declared, and each of them makes a method."""
    found = read_alternative({"name": name, key: "searched"}, whole=True)
    (varied,) = found.varied
    how = METHOD_CONFIGS[name].tuned()[key]
    assert (varied.key, varied.ordered) == (key, True)
    assert 2 <= len(varied.values) == len(found.configs)
    assert [getattr(config, key) for config in found.configs.values()] == list(varied.values)
    if how.grid:
        assert set(varied.values) == set(how.grid)
    else:
        assert how.low <= varied.values[0] < varied.values[-1] <= how.high
    default = METHOD_CONFIGS[name].model_fields[key].default
    if isinstance(default, int | float):
        assert abs(varied.values[varied.usual] - default) == min(abs(value - default) for value in varied.values)


@pytest.mark.parametrize(("name", "key"), [pair for pair in TUNED if pair[0] in LINEAR_METHODS])
def test_those_of_methods_of_parts_in_parts_too(name: str, key: str) -> None:
    config = build(methods=[{"name": name, key: "searched"}])
    (found,) = config.alternatives
    assert not found.whole
    assert len(found.configs) == len(found.varied[0].values) > 1


def test_the_file_that_is_kept_has_lists(tmp_path: Path) -> None:
    config = build(directions=whole("iso-c", {"name": "ties", "density": "searched"}))
    (tmp_path / "kept.yaml").write_text(dump_config(config))
    assert "searched" not in (tmp_path / "kept.yaml").read_text()
    assert load_config(tmp_path / "kept.yaml") == config
    assert [found.name for found in config.alternatives] == ["iso-c", "ties"]
    assert all(found.whole for found in config.alternatives)
    assert config.alternatives[1].varied[0].values == (0.05, 0.1, 0.2, 0.3, 0.4)


def test_weights_of_a_whole_method_are_its_own() -> None:
    (found, _) = read_alternatives([{"name": "ties", "weights": {"law": 2.0}}, {"name": "iso-c"}], whole=True)
    assert found.configs[()].weights == {"law": 2.0}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"directions": whole("ties", "iso-d")}, "there is no method iso-d.*Did you mean 'iso-c'"),
        ({"directions": whole("ties")}, r"nothing to choose; use directions: \[ties\]"),
        (
            {"directions": whole({"name": "ties", "normalize": "searched"})},
            "it does not say over which values.*density",
        ),
        ({"directions": whole({"name": "average", "wheights": [1, 2]})}, "average.wheights: Extra inputs"),
        ({"directions": whole({"name": "dare", "seed": list(range(MOST + 1))})}, f"make {MOST + 1} combinations"),
        ({"directions": [*whole("ties", "iso-c"), "ties"]}, "ties stands among the directions, and in one-of too"),
        ({"directions": [*whole("ties", "iso-c"), *whole("dare", "slerp")[1:]]}, "directions has 2 of one-of"),
        ({"directions": whole("ties", "iso-c"), "methods": ["dare", "tsv-m"]}, "a search makes one choice"),
        ({"methods": ["ties", "dare"]}, r"ties is not a sum .* \{name: one-of, methods: \[ties, \.\.\.\]\}"),
        (
            {"methods": ["dare", {"name": "custom", "path": "mine.py:Own", "settings": None}]},
            "custom.settings: Input should be a valid dictionary",
        ),
        (
            {"directions": whole("ties", {"name": "custom", "path": "mine.py:Own", "settings": [1, 2]})},
            "custom.settings: Input should be a valid dictionary",
        ),
        (
            {"directions": whole("ties", {"name": "iso-c", "weights": {"lw": 1}})},
            "a weight for 'lw'.*Did you mean 'law'",
        ),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(**changes)


def test_statistics_of_what_may_be_chosen_need_a_task_of_every_expert() -> None:
    tasks = {"law": {"expert": "law", "data": "law.jsonl"}}
    with pytest.raises(ConfigError, match=r"one-of: regmean needs inputs of every expert, and no task has .* code"):
        build(directions=whole("ties", "regmean"), tasks=tasks)


@pytest.mark.parametrize("driver", DRIVER_CONFIGS)
def test_drivers_that_follow_a_gradient_are_told_which_do_not(driver: str) -> None:
    changes = {"directions": whole("ties", "iso-c"), "driver": driver}
    if driver not in GRADIENT_DRIVERS:
        assert build(**changes).alternatives
        return
    with pytest.raises(ConfigError) as caught:
        build(**changes)
    assert all(other in str(caught.value) for other in NO_GRADIENT_DRIVERS)
