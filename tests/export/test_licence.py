"""A merge states a licence only where every one of its models states that one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from optmerge.export.licence import Inherited, Licence, Statement, inherit
from optmerge.models.family import Family
from tests.export.families import open_with_adapter

GetFamily = Callable[[str], Family]


@contextmanager
def cards(family: Family, **metadata: str) -> Iterator[None]:
    """Cards with this metadata in the folders of base and experts, for a while."""
    written = []
    for name, text in metadata.items():
        checkpoint = family.base if name == "base" else family.experts[name]
        path = checkpoint.folder / "README.md"
        path.write_text(text if text.startswith("#") else f"---\n{text}\n---\nA model.\n")
        written.append(path)
    try:
        yield
    finally:
        for path in written:
            path.unlink()


def test_the_licence_that_all_state_is_inherited(family: GetFamily) -> None:
    models = family("llama")
    with cards(models, base="license: MIT", one="license: mit", two="license: [mit]"):
        found = inherit(models)
    assert found.licence == Licence(("MIT",))
    assert not found.conflict
    assert found.section() == "Every model of this merge states `MIT`."


def test_name_and_link_are_inherited_too(family: GetFamily) -> None:
    models = family("llama")
    own = "license: other\nlicense_name: own-1\nlicense_link: https://example.org/{}"
    with cards(models, base=own.format("a"), one=own.format("b"), two=own.format("c")):
        found = inherit(models)
    assert found.licence == Licence(("other",), "own-1", "https://example.org/a")
    assert "[`other` (own-1)](https://example.org/a)" in found.section()


@pytest.mark.parametrize(
    "other", ["license: apache-2.0", "license: [mit, apache-2.0]", "license: mit\nlicense_name: not-quite-mit"]
)
def test_conflicts_are_named(family: GetFamily, other: str) -> None:
    models = family("llama")
    with cards(models, base="license: mit", one="license: mit", two=other):
        found = inherit(models)
    assert found.licence is None
    assert found.conflict
    text = " ".join(found.section().split())
    assert "**different licences**" in text
    assert "| base | `mit` |" in text
    assert f"| two | {found.statements[2].licence} |" in text


@pytest.mark.parametrize("two", ["tags: [x]", "license: 3", "license: []", "# A card without metadata\n"])
def test_a_model_that_states_none_leaves_it_open(family: GetFamily, two: str) -> None:
    models = family("llama")
    with cards(models, base="license: mit", one="license: mit", two=two):
        found = inherit(models)
    assert found.licence is None
    assert not found.conflict
    assert "| two | states none |" in " ".join(found.section().split())


@pytest.mark.parametrize("metadata", ["license: [", "- a list"])
def test_a_card_that_cannot_be_read_is_told(family: GetFamily, metadata: str) -> None:
    models = family("llama")
    with cards(models, base="license: mit", two=metadata):
        statement = inherit(models).statements[2]
    assert statement == Statement("two", None, "its card's metadata cannot be read")


def test_nobody_states_anything(family: GetFamily) -> None:
    found = inherit(family("llama"))
    assert found.licence is None
    assert found.section().startswith("None of the models states a licence")


def test_a_licence_file_is_mentioned_and_not_guessed_from(family: GetFamily) -> None:
    models = family("llama")
    path = models.base.folder / "LICENSE"
    path.write_text("MIT License\n")
    try:
        found = inherit(models)
    finally:
        path.unlink()
    assert found.licence is None
    assert found.statements[0].note == "has a LICENSE file and states no identifier"


def test_the_config_counts_where_the_card_is_silent(family: GetFamily) -> None:
    import json

    models = family("gpt2")
    config = models.experts["one"].folder / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "license": "mit"}))
    try:
        with cards(models, one="tags: [x]"):
            assert inherit(models).statements[1].licence == Licence(("mit",))
        with cards(models, one="license: apache-2.0"):
            assert inherit(models).statements[1].licence == Licence(("apache-2.0",))
    finally:
        config.write_text(before)


def test_an_adapter_is_asked_as_well_as_its_base(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    models = open_with_adapter("llama", tmp_path)
    with cards(models, base="license: mit", one="license: mit"):
        (tmp_path / "lora" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
        found = inherit(models)
    told = {each.who: each.licence for each in found.statements}
    assert told == {
        "base": Licence(("mit",)),
        "one": Licence(("mit",)),
        "two": Licence(("mit",)),
        "two (adapter)": Licence(("cc-by-4.0",)),
    }
    assert found.conflict


def test_order_and_case_do_not_make_a_conflict() -> None:
    pair = (Licence(("mit", "Apache-2.0")), Licence(("apache-2.0", "MIT"), link="https://example.org"))
    found = Inherited(tuple(Statement(str(at), licence) for at, licence in enumerate(pair)))
    assert found.licence == pair[0]
