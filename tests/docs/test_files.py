"""The YAML of the documentation is what its page calls it: (part of) a search file, a recipe, a task of lm-eval."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import optmerge
from optmerge.config.load import build_config
from optmerge.config.reading import read_yaml
from optmerge.config.schema import SearchConfig
from optmerge.config.spaces import SpaceConfig
from optmerge.config.tasks import TaskConfig
from tests.cli.conftest import Run
from tests.docs.pages import Block, pages, read_page
from tests.docs.world import CHANGES, MODELS, ZOO, World, readme_search_file

BLOCKS = [
    pytest.param(name, block, id=f"{name}:{block.line}")
    for name in pages()
    for block in read_page(name, CHANGES.get(name)).blocks("yaml")
]


def variants(text: str) -> list[str]:
    """A block whose entries show several forms of one key is as many files."""
    entries = re.split(r"^(?=[^\s#-])", text, flags=re.MULTILINE)
    keys = [entry.partition(":")[0] for entry in entries if ":" in entry]
    return [text] if len(keys) == len(set(keys)) else [entry for entry in entries if ":" in entry]


def check(content: Any, place: Path, source: str) -> None:
    """Build the config or the merge that some YAML is about.

    Raises:
        AssertionError: It is about nothing that is known.
    """
    if content is None:
        return  # a comment alone
    assert isinstance(content, dict), source
    settings: dict[str, Any] = read_yaml(readme_search_file(), source="README.md")  # type: ignore[assignment]
    keys = set(content)
    if "optmerge_recipe" in keys:
        return  # merged by the test below
    if {"task", "dataset_path"} <= keys:
        return  # lm-eval's own; tests/objective/test_harness.py runs such a one
    if keys <= set(SearchConfig.model_fields):
        if "schedule" in keys:
            del settings["driver"], settings["budget"]
        named = {task["expert"] for task in content.get("tasks", settings["tasks"]).values()}
        experts = settings["experts"] | {name: "models/topic" for name in named - set(settings["experts"])}
        build_config(settings | {"experts": experts} | content, root=place)
    elif keys <= set(SpaceConfig.model_fields):
        directions = sorted({rule["direction"] for rule in content.get("rules", []) if "direction" in rule})
        build_config(settings | {"space": content, "directions": ["experts", *directions]}, root=place)
    elif keys <= set(TaskConfig.model_fields):
        settings["tasks"]["topic"].update(content)
        if "template" in content:
            del settings["tasks"]["topic"]["text"]
        build_config(settings, root=place)
    else:
        raise AssertionError(f"{source}: {sorted(keys)} are keys of nothing that is known here")


def test_there_are_files() -> None:
    assert len(BLOCKS) >= 30


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_it_is_valid(name: str, block: Block, world: World, folder: Path) -> None:
    world.begin(MODELS, folder)
    for other in read_page(name).steps:  # a class of one's own, a task of lm-eval
        if isinstance(other, Block) and other.file is not None:
            (folder / other.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / other.file).write_text(other.text)
    for text in variants(block.text):
        check(read_yaml(text, source=f"{name}:{block.line}"), folder, f"{name}:{block.line}")


RECIPES = [parameters for parameters in BLOCKS if "optmerge_recipe" in parameters.values[1].text]


@pytest.mark.parametrize(("name", "block"), RECIPES)
def test_a_recipe_can_be_merged(name: str, block: Block, world: World, run: Run, folder: Path) -> None:
    world.begin(ZOO, folder)
    (folder / "recipe.yaml").write_text(block.text)
    merged = optmerge.merge("recipe.yaml")
    assert isinstance(merged, dict)
    assert merged


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page:1: \['sapce'\] are keys of nothing"):
        check({"sapce": "layer-wise"}, tmp_path, "page:1")
    with pytest.raises(optmerge.ConfigError, match="lyr"):
        check({"driver": {"name": "adam", "lyr": 1}}, tmp_path, "page:1")
    assert variants("a: 1\nb:\n  - 2\na: 3\n") == ["a: 1\n", "b:\n  - 2\n", "a: 3\n"]
