"""Vocabularies that differ: what is said of them, and what each policy makes of the rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from optmerge.errors import ModelError
from optmerge.models.adapter import AdapterCheckpoint
from optmerge.models.aligned import AlignedCheckpoint
from optmerge.models.family import Family, open_family
from optmerge.models.tokenizer import tokenizer_for
from optmerge.models.tokens import read_tokens, tokens_digest
from optmerge.models.vocabulary import Difference, Policy
from tests.models.peft_adapters import train
from tests.tiny import VOCABULARY, TinyFamily, make_model, save_family

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Numbers = dict[str, int]


@pytest.fixture(params=["llama", "llama-tied"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> TinyFamily:
    return save_family(request.param, tmp_path)


def numbers_of(folder: Path) -> Numbers:
    ids = read_tokens(folder)
    assert ids is not None
    return ids


def renumber(folder: Path, ids: Mapping[str, int], *, rows: int, base: Path | None = None) -> None:
    """Give a model another tokenizer and number of rows; rows follow the tokens that it had, and others are new."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    before = numbers_of(folder)
    content["model"]["vocab"] = dict(ids)
    content["added_tokens"] = [
        {**entry, "id": ids[entry["content"]]} for entry in content["added_tokens"] if entry["content"] in ids
    ]
    path.write_text(json.dumps(content))
    generator = torch.Generator().manual_seed(len(ids))
    tensors = load_file(folder / "model.safetensors")
    for name in (EMBEDDING, HEAD):
        if name in tensors:
            old = tensors[name]
            new = torch.randn(rows, old.shape[1], generator=generator)
            for token, number in ids.items():
                if token in before:
                    new[number] = old[before[token]]
            tensors[name] = new
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))


def with_more(ids: Numbers, *tokens: str) -> Numbers:
    return ids | {token: VOCABULARY + place for place, token in enumerate(tokens)}


def turned(ids: Numbers) -> Numbers:
    """Words in the opposite order."""
    return {token: number if number < 6 else VOCABULARY + 5 - number for token, number in ids.items()}


def opened(made: TinyFamily, vocabulary: Policy = "refuse") -> Family:
    experts = {name: str(folder) for name, folder in made.experts.items()}
    return open_family(str(made.base), experts, relative_to=Path(), vocabulary=vocabulary)


def vocabulary_names(family: Family) -> list[str]:
    return [name for name in (EMBEDDING, HEAD) if name in family.parameters]


def rows_of(made: TinyFamily, who: str, name: str) -> Tensor:
    folder = made.base if who == "base" else made.experts[who]
    return load_file(folder / "model.safetensors")[name]


def test_added_tokens_are_named(made: TinyFamily) -> None:
    ids = numbers_of(made.base)
    renumber(made.experts["one"], with_more(ids, "<a>", "<b>", "<c>", "<d>"), rows=68)
    with pytest.raises(ModelError) as caught:
        opened(made)
    said = str(caught.value)
    assert f"the expert one ({made.experts['one']}) has 68 rows against the base's 64" in said
    assert "4 tokens added ('<a>' at 64, '<b>' at 65, '<c>' at 66, ...)" in said
    assert "vocabulary: common" in said
    assert "vocabulary: base" in said
    assert EMBEDDING in said
    assert "two" not in said


def test_moved_and_replaced_tokens_are_named(made: TinyFamily) -> None:
    ids = numbers_of(made.base)
    renumber(made.experts["one"], turned(ids), rows=VOCABULARY)
    chat = {("<chat>" if token == "w7" else token): number for token, number in ids.items()}
    renumber(made.experts["two"], chat, rows=VOCABULARY)
    with pytest.raises(ModelError, match=r"one .* has 58 tokens moved \('w0' from 6 to 63, .*two .* has 1 token "
                       r"replaced \('w7' by '<chat>' at 13\)"):  # fmt: skip
        opened(made)


def test_padding_is_told_from_tokens(made: TinyFamily) -> None:
    renumber(made.experts["two"], numbers_of(made.base), rows=72)
    with pytest.raises(ModelError, match=r"two .* has 72 rows against the base's 64, the tokens are the same: padding"):
        opened(made)
    (made.experts["two"] / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"two .*64, what they stand for is in no tokenizer's file"):
        opened(made)


def test_rows_that_disagree_with_the_expert_s_config_too(made: TinyFamily) -> None:
    renumber(made.experts["two"], numbers_of(made.base), rows=72)
    config = made.experts["two"] / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 72', '"vocab_size": 64'))
    with pytest.raises(ModelError, match="72 rows against the base's 64"):
        opened(made)
    assert opened(made, "base").read("two", EMBEDDING).shape[0] == VOCABULARY


def test_new_tokens_in_unused_rows_are_no_trouble(tmp_path: Path) -> None:
    made = save_family("llama", tmp_path, vocab_size=80)  # 16 rows of padding
    ids = numbers_of(made.base)
    renumber(made.experts["one"], with_more(ids, "<a>"), rows=80)
    assert not isinstance(opened(made).experts["one"], AlignedCheckpoint)
    tokenizer_for(opened(made), "one")
    renumber(made.experts["two"], with_more(ids, "<b>"), rows=80)
    with pytest.raises(ModelError, match="the new token 64 is '<a>' in one and '<b>' in two"):
        opened(made)
    renumber(made.experts["two"], ids | {"<a>": 70}, rows=80)
    with pytest.raises(ModelError, match="the new token '<a>' is 64 in one and 70 in two"):
        opened(made)


@pytest.mark.parametrize("rows", [72, 50])
def test_base_goes_by_number(made: TinyFamily, rows: int) -> None:
    kept = {token: number for token, number in numbers_of(made.base).items() if number < rows}
    renumber(made.experts["one"], kept, rows=rows)
    family = opened(made, "base")
    for name in vocabulary_names(family):
        own, base = rows_of(made, "one", name), rows_of(made, "base", name)
        both = min(rows, VOCABULARY)
        assert family.parameters[name].shape[0] == VOCABULARY
        assert torch.equal(family.read("one", name), torch.cat([own[:both], base[both:]]))
        assert torch.equal(family.read("two", name), rows_of(made, "two", name))
    assert family.configs["one"].vocab_size == VOCABULARY


def test_merging_other_tokens_by_number_is_said_every_time(made: TinyFamily, caplog: pytest.LogCaptureFixture) -> None:
    renumber(made.experts["one"], turned(numbers_of(made.base)), rows=VOCABULARY)
    for _ in range(2):
        caplog.clear()
        opened(made, "base")
        assert "58 tokens moved" in caplog.text
        assert "merged by number" in caplog.text


def test_common_goes_by_token(made: TinyFamily) -> None:
    ids = numbers_of(made.base)
    without = {token: number for token, number in ids.items() if token != "w57"}
    renumber(made.experts["one"], turned(ids) | {"<a>": VOCABULARY}, rows=70)
    renumber(made.experts["two"], without, rows=VOCABULARY)
    family = opened(made, "common")
    for name in vocabulary_names(family):
        base, one = rows_of(made, "base", name), rows_of(made, "one", name)
        expected = one[[turned(ids)[token] for token in sorted(ids, key=lambda token: ids[token])]]
        last = ids["w57"]  # which two does not have
        expected[last] = base[last]
        assert torch.equal(family.read("one", name), expected)
        two = rows_of(made, "two", name)
        two[last] = base[last]
        assert torch.equal(family.read("two", name), two)
        others = [number for number in range(VOCABULARY) if number != last]
        assert not torch.equal(expected[others], base[others])


def test_common_leaves_rows_without_tokens_to_the_base(tmp_path: Path) -> None:
    made = save_family("llama", tmp_path, vocab_size=80)
    ids = numbers_of(made.base)
    renumber(made.experts["one"], turned(ids), rows=80)
    family = opened(made, "common")
    assert torch.equal(family.read("one", EMBEDDING)[VOCABULARY:], rows_of(made, "base", EMBEDDING)[VOCABULARY:])
    assert not isinstance(family.experts["two"], AlignedCheckpoint)


def test_common_needs_tokenizers(made: TinyFamily) -> None:
    renumber(made.experts["one"], numbers_of(made.base), rows=70)
    (made.experts["one"] / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"'common', .* expert one .* no tokenizer.*vocabulary: base"):
        opened(made, "common")


def test_rows_of_the_base_survive_another_type(tmp_path: Path) -> None:
    made = save_family("llama-tied", tmp_path, dtype=torch.float16)
    renumber(made.experts["one"], {t: n for t, n in numbers_of(made.base).items() if n < 60}, rows=60)
    path = made.experts["one"] / "model.safetensors"
    save_file({name: value.to(torch.bfloat16) for name, value in load_file(path).items()}, path, {"format": "pt"})
    read = opened(made, "base").read("one", EMBEDDING)
    assert torch.equal(read[60:], rows_of(made, "base", EMBEDDING)[60:].to(read.dtype))
    assert read.dtype == torch.float32


def test_hashes_and_caches_know_the_rows(made: TinyFamily, private_cache: Path) -> None:
    ids = numbers_of(made.base)
    renumber(made.experts["one"], turned(ids), rows=VOCABULARY)
    by_number, by_token = opened(made, "base"), opened(made, "common")
    assert by_number.fingerprint() != by_token.fingerprint()
    assert by_number.experts["two"].sha256() == by_token.experts["two"].sha256()
    assert opened(made, "common").fingerprint() == by_token.fingerprint()
    assert torch.equal(by_token.read("one", EMBEDDING), opened(made, "common").read("one", EMBEDDING))
    assert len(list((private_cache / "vocabularies").iterdir())) == 1
    with pytest.raises(ModelError, match="58 tokens moved"):  # what was remembered for another policy is not taken
        opened(made)


def test_whose_tokenizer(made: TinyFamily) -> None:
    renumber(made.experts["one"], turned(numbers_of(made.base)), rows=VOCABULARY)
    family = opened(made, "common")
    with pytest.raises(ModelError, match="tokenizer is 'one', whose tokens are numbered otherwise"):
        tokenizer_for(family, "one")
    for who in ("base", "two"):
        tokenizer_for(family, who)
    tokenizer_for(opened(made, "base"), "one")  # rows are merged by number, so its numbers hold


def test_an_adapter_s_tokenizer_is_the_one_beside_it(tmp_path: Path) -> None:
    made = save_family("llama", tmp_path)
    adapter = tmp_path / "adapter"
    train(make_model("llama"), adapter, target_modules=["q_proj"])
    reference = f"{made.base}+{adapter}"
    policies: tuple[Policy, ...] = ("refuse", "common")
    for policy in policies:
        family = open_family(str(made.base), {"a": reference}, relative_to=Path(), vocabulary=policy)
        assert isinstance(family.experts["a"], AdapterCheckpoint)
    shutil.copy(made.base / "tokenizer.json", adapter)
    content = json.loads((adapter / "tokenizer.json").read_text())
    content["model"]["vocab"] = turned(content["model"]["vocab"])
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"expert a .* has 58 tokens moved"):
        open_family(str(made.base), {"a": reference}, relative_to=Path())


def test_differences() -> None:
    base = {"a": 0, "b": 1, "c": 2, "d": 3}
    found = Difference.between(base, {"b": 0, "x": 2, "d": 3, "y": 9})
    assert found.moved == (("b", 1, 0),)
    assert found.replaced == ((2, "c", "x"),)
    assert found.added == (("y", 9),)
    assert found.lacking == (("a", 0),)
    assert Difference.between(base, base) == Difference((), (), (), ())


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: (folder / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": [["<s>", 0.0], ["a", -1.5]]}, "added_tokens": [{"id": 2, "content": "<x>"}]})
        ),
        lambda folder: (folder / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {"a": 1, "<s>": 0}}, "added_tokens": [{"id": 2, "content": "<x>"}]})
        ),
    ],
    ids=["unigram", "bpe"],
)
def test_reading_tokens(write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path)
    assert read_tokens(tmp_path) == {"<s>": 0, "a": 1, "<x>": 2}


def test_a_digest_knows_numbers_and_nothing_else(made: TinyFamily, caplog: pytest.LogCaptureFixture) -> None:
    path = made.experts["one"] / "tokenizer.json"
    before = tokens_digest(made.base)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation": None}, indent=3))
    assert tokens_digest(made.experts["one"]) == before
    assert tokens_digest(made.experts["one"]) == before  # from the cache
    path.write_text("{}")
    assert tokens_digest(made.experts["one"]) is None
    assert "cannot be read" in caplog.text
    assert tokens_digest(made.base / "nowhere") is None


def test_a_digest_of_a_slow_tokenizer_knows_the_tokens_that_its_config_adds(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    added = {"content": "<x>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings: dict[str, object] = {"tokenizer_class": "BertTokenizer"}
    folders = {"plain": settings, "more": settings | {"added_tokens_decoder": {"6": {**added, "special": True}}}}
    for name, content in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text("\n".join(words) + "\n")
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(content))
    digests = [tokens_digest(tmp_path / name) for name in folders]
    assert None not in digests
    assert digests[0] != digests[1]
    more = read_tokens(tmp_path / "more")
    assert more is not None
    assert more["<x>"] == 6


def test_an_adapter_s_tensors_are_made_for_the_occasion_in_another_vocabulary_too(tmp_path: Path) -> None:
    made = save_family("llama", tmp_path)
    adapter = tmp_path / "adapter"
    train(make_model("llama"), adapter, target_modules=["q_proj"])
    content = json.loads((made.base / "tokenizer.json").read_text())
    content["model"]["vocab"] = turned(content["model"]["vocab"])
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    experts = {"a": f"{made.base}+{adapter}", "one": str(made.experts["one"])}
    family = open_family(str(made.base), experts, relative_to=Path(), vocabulary="common")
    assert isinstance(family.experts["a"], AlignedCheckpoint)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert {who: family.is_view(who, name) for who in ("base", "a", "one")} == {"base": True, "a": False, "one": True}
