"""Every method has a preset, made from what it declares, that a search file can name."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from optmerge.config.load import load_config
from optmerge.config.method_presets import MOST, preset_content, preset_text
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.errors import ConfigError
from optmerge.presets import preset_folder, preset_names

RENEW = "run: python -m optmerge.config.method_presets search_spaces/methods"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    tasks = {name: {"expert": name, "data": f"{name}.jsonl", "label": "label"} for name in ("a", "b")}
    path.write_text(
        yaml.safe_dump({"base": "base", "experts": {"a": "a", "b": "b"}, "tasks": tasks, "objective": "expert-kl"})
    )
    return path


def test_there_is_one_for_every_method_and_no_other() -> None:
    assert preset_names("methods") == sorted(METHOD_CONFIGS), RENEW


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_it_says_what_the_method_declares(name: str) -> None:
    path = preset_folder("methods") / f"{name}.yaml"
    assert path.is_file(), f"{name} has no preset; {RENEW}"
    assert path.read_text() == preset_text(METHOD_CONFIGS[name]), RENEW


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_its_command_makes_a_search_over_the_method(name: str, file: Path) -> None:
    lines = (preset_folder("methods") / f"{name}.yaml").read_text().splitlines()
    (command,) = (line.removeprefix("# Run:") for line in lines if line.startswith("# Run:"))
    words = shlex.split(command)
    assert words[:3] == ["optmerge", "search", "search.yaml"]
    config = load_config(file, overrides=words[4::2])
    model = METHOD_CONFIGS[name]
    chosen = config.alternatives
    assert bool(chosen) == bool(model.tuned())
    if chosen:
        assert [one.name for one in chosen] == [name]
        keys = [varied.key for varied in chosen[0].varied]
        assert keys == [key for key in model.tuned() if key in keys]
        assert "Not searched" in "".join(lines) or keys == list(model.tuned())
        assert 1 < len(chosen[0].configs) <= MOST
        assert chosen[0].whole != model.facts.linear
    elif model.facts.linear:
        assert config.method == model()
    else:
        assert config.directions == [model()]


def test_a_preset_and_the_file_may_not_say_the_same(file: Path) -> None:
    with pytest.raises(ConfigError, match="methods is ties, which says what directions is, and the file says it too"):
        load_config(file, overrides=["methods=ties", "directions=[experts]", "driver=cma"])
    with pytest.raises(ConfigError, match=r"methods is 'tiess'; expected one of .* or a list.*Did you mean 'ties'"):
        load_config(file, overrides=["methods=tiess", "driver=cma"])


def test_a_file_of_ones_own(file: Path) -> None:
    (file.parent / "mine.yaml").write_text(yaml.safe_dump(preset_content(METHOD_CONFIGS["ties"])))
    assert load_config(file, overrides=["methods=mine.yaml", "driver=cma"]).alternatives[0].name == "ties"
