"""YAML without YAML 1.1's surprises."""

from __future__ import annotations

import pytest

from optmerge.config.reading import read_yaml
from optmerge.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        (".inf", float("inf")),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("12", 12),
        ("2026-01-01", "2026-01-01"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_are_what_people_mean(text: str, value: object) -> None:
    assert read_yaml(text, source="x") == value
    assert type(read_yaml(text, source="x")) is type(value)


def test_duplicate_key_is_refused_with_both_lines() -> None:
    with pytest.raises(ConfigError, match=r"(?s)f\.yaml, line 3.*'seed' stands twice, first on line 1"):
        read_yaml("seed: 1\nbase: x\nseed: 2\n", source="f.yaml")


def test_merge_keys_may_be_overridden() -> None:
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}", source="f")["b"] == {"x": 2}


@pytest.mark.parametrize("text", ["a: [1, 2", "a: b: c", "a:\n\t- 1", "'open", "a: *missing"])
def test_syntax_errors_have_a_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml, line \d"):
        read_yaml(text, source="f.yaml")


def test_yaml_runs_no_code() -> None:
    with pytest.raises(ConfigError):
        read_yaml("!!python/object/apply:os.system ['true']", source="f")
