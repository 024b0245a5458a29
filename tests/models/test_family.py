"""Families: what fits, and one message for each way in which models may not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from optmerge.errors import ConfigError, ModelError
from optmerge.models.checkpoint import FolderCheckpoint
from optmerge.models.family import Family, open_family
from tests.tiny import KINDS, TinyFamily, make_model, save, save_family, save_model

Tiny = Callable[[str], TinyFamily]
Copied = Callable[[str], TinyFamily]


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Copied:
    """``copied("llama")``: the test's own copy of that family, at ``tmp_path / "base"`` and beside it."""

    def copy(kind: str) -> TinyFamily:
        made = tiny(kind)
        shutil.copytree(made.base.parent, tmp_path, dirs_exist_ok=True)
        return TinyFamily(tmp_path / "base", {name: tmp_path / name for name in made.experts})

    return copy


def opened(made: TinyFamily, *, heads: Literal["auto", "own", "merged"] = "auto", check_values: bool = True) -> Family:
    experts = {name: str(folder) for name, folder in made.experts.items()}
    return open_family(str(made.base), experts, relative_to=Path(), heads=heads, check_values=check_values)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(made: TinyFamily, said: str, **options: bool) -> None:
    with pytest.raises(ModelError, match=said):
        opened(made, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_opens_and_reads_its_models(tiny: Tiny, kind: str) -> None:
    made = tiny(kind)
    family = opened(made)
    models = {"base": make_model("bert-body" if kind in ("bert", "bert-tags") else kind)}
    assert family.num_layers == (4 if kind.startswith("t5") else 2)  # an encoder's and a decoder's
    own = kind in ("bert", "bert-tags")
    assert family.heads == ("own" if own else "merged")
    assert bool(family.head_parameters) == own
    expected = dict(models["base"].named_parameters())
    for name, parameter in family.parameters.items():
        value = expected[name.removeprefix("bert.")]
        assert parameter.shape == tuple(value.shape)
        assert torch.equal(family.read("base", name), value)
        assert not torch.equal(family.read("one", name), value)
        assert family.parameter_of(family.disk_names(name)[0]) == name


def test_kinds(tiny: Tiny) -> None:
    assert opened(tiny("bert")).kind == "sequence-classification"
    assert opened(tiny("gpt2")).kind == "causal-lm"
    assert opened(tiny("vit")).kind == "image-classification"
    assert opened(tiny("llava")).kind == "causal-lm"


def test_fingerprint_follows_content(tiny: Tiny) -> None:
    made = tiny("llama")
    fingerprint = opened(made).fingerprint()
    assert opened(made).fingerprint() == fingerprint
    assert opened(TinyFamily(made.base, {"one": made.experts["one"]})).fingerprint() != fingerprint


def test_headers_only(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderCheckpoint, "read", lambda *_: pytest.fail("a weight was read"))
    monkeypatch.setattr(FolderCheckpoint, "sha256", lambda *_: pytest.fail("a file was hashed"))
    for kind in ("bert", "llama-tied", "mixtral"):
        opened(tiny(kind), check_values=False)


def test_dtypes_may_differ(tiny: Tiny, tmp_path: Path) -> None:
    half = save(make_model("llama", seed=3, dtype=torch.bfloat16), tmp_path / "half", "llama")
    family = opened(TinyFamily(tiny("llama").base, {"half": half}))
    assert next(iter(family.parameters.values())).dtype == torch.float32
    assert family.read("half", "lm_head.weight").dtype == torch.bfloat16


# ---- heads ----


def test_same_heads_are_merged_unless_own_is_asked_for(tmp_path: Path) -> None:
    made = save_family("bert-body", tmp_path / "x")
    assert opened(made).heads == "merged"
    with pytest.raises(ConfigError, match="no head apart from their body"):
        opened(made, heads="own")
    base = save_model("bert", tmp_path / "base")
    one = save_model("bert", tmp_path / "one", seed=1)
    same = TinyFamily(base, {"one": one})
    assert opened(same).heads == "merged"
    own = opened(same, heads="own")
    assert own.head_parameters == ("classifier.weight", "classifier.bias")
    assert not set(own.head_parameters) & set(own.parameters)
    edit_config(one, id2label={"0": "sad", "1": "glad"}, label2id={"sad": 0, "glad": 1})
    assert opened(same).heads == "own"


def test_heads_that_cannot_be_merged(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"heads is 'merged'.*classifier.weight"):
        opened(tiny("bert"), heads="merged")


def test_language_models_with_own_heads(tiny: Tiny) -> None:
    family = opened(tiny("llama"), heads="own")
    assert family.head_parameters == ("lm_head.weight",)


def test_no_experts(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="no experts"):
        open_family(str(tiny("llama").base), {}, relative_to=Path())


# ---- what does not fit ----


def test_other_architecture(tiny: Tiny) -> None:
    refused(
        TinyFamily(tiny("llama").base, {"odd": tiny("qwen2").base}),
        r"The expert odd \(.*\) is a qwen2 model and the base .* a llama model",
    )


def test_experts_of_two_classes(tiny: Tiny) -> None:
    bert = tiny("bert")
    refused(
        TinyFamily(bert.base, {"one": bert.experts["one"], "body": bert.base}),
        "one is a BertForSequenceClassification, body a BertModel",
    )


@pytest.mark.parametrize("who", ["base", "one"])
def test_missing_tensors(copied: Copied, tmp_path: Path, who: str) -> None:
    made = copied("llama")

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("gate", "up", "down"):
            del tensors[f"model.layers.1.mlp.{part}_proj.weight"]

    rewrite(tmp_path / who, drop)
    refused(made, rf"{who}.* lacks 3 tensors \(model.layers.1.mlp.gate_proj.weight, .*LlamaForCausalLM")


@pytest.mark.parametrize("who", ["base", "one"])
def test_a_head_that_was_lost(copied: Copied, tmp_path: Path, who: str) -> None:
    made = copied("llama")
    rewrite(tmp_path / who, lambda tensors: tensors.pop("lm_head.weight"))
    refused(made, rf"{who}.*lacks 1 tensor \(lm_head.weight\)")


def test_missing_head_of_a_classifier(copied: Copied, tmp_path: Path) -> None:
    made = copied("bert")
    rewrite(made.experts["two"], lambda tensors: tensors.pop("classifier.bias"))
    refused(made, r"two.*lacks 1 tensor \(classifier.bias\)")


@pytest.mark.parametrize("who", ["base", "one"])
def test_extra_tensors(copied: Copied, tmp_path: Path, who: str) -> None:
    made = copied("llama")
    rewrite(tmp_path / who, lambda tensors: tensors.update({"model.adapter.weight": torch.ones(2)}))
    refused(
        made, rf"{who}.* has 1 tensor \(model.adapter.weight\) that the architecture LlamaForCausalLM does not take"
    )


def test_buffers_and_a_bases_other_head_are_not_extra(copied: Copied, tmp_path: Path) -> None:
    made = copied("bert")
    for folder in (made.base, *made.experts.values()):
        prefix = "" if folder == made.base else "bert."
        rewrite(folder, lambda t, p=prefix: t.update({f"{p}embeddings.position_ids": torch.arange(64)[None]}))
    rewrite(made.base, lambda tensors: tensors.update({"cls.predictions.bias": torch.ones(64)}))
    assert opened(made).heads == "own"


def test_number_of_layers(copied: Copied, tmp_path: Path) -> None:
    made = copied("llama")
    deep = save_model("llama", tmp_path / "deep", num_hidden_layers=3)
    refused(TinyFamily(made.base, {"deep": deep}), r"deep.* has 9 tensors \(model.layers.2.* base does not have")
    refused(TinyFamily(deep, {"one": made.experts["one"]}), r"one.* lacks 9 tensors \(model.layers.2.* of the base")


def test_shapes(copied: Copied, tmp_path: Path) -> None:
    made = copied("llama")
    wide = save_model("llama", tmp_path / "wide", intermediate_size=32)
    refused(
        TinyFamily(made.base, {"wide": wide}),
        r"shapes of 6 tensors .* differ; model.layers.0.mlp.gate_proj.weight is \[32, 16\], and \[24, 16\] in the base",
    )


def test_shapes_that_contradict_the_config(copied: Copied, tmp_path: Path) -> None:
    made = copied("llama")
    edit_config(made.experts["one"], intermediate_size=40)
    refused(made, r"one.*disagrees with its own config.json.*\[24, 16\] on disk and \[40, 16\]")


def test_settings_that_shapes_do_not_show(copied: Copied, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = copied("llama")
    edit_config(made.experts["one"], rms_norm_eps=0.125, attention_dropout=0.5)
    opened(made)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "one" in caplog.text
    assert "rms_norm_eps 0.125 (base 1e-06)" in caplog.text


def test_tied_by_one_config_only(tiny: Tiny) -> None:
    tied, untied = tiny("llama-tied"), tiny("llama")
    for made in (TinyFamily(tied.base, untied.experts), TinyFamily(untied.base, tied.experts)):
        refused(made, r"disagree about the language-model head: it is tied to the input embedding model.embed_tokens")


@pytest.mark.parametrize("who", ["base", "one"])
def test_lm_head_on_one_side_of_a_tied_pair(copied: Copied, tmp_path: Path, who: str) -> None:
    made = copied("llama-tied")
    rewrite(tmp_path / who, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    refused(made, rf"{who}.* has the tensor lm_head.weight on disk", check_values=False)


def test_tied_copies_on_both_sides(copied: Copied, tmp_path: Path) -> None:
    made = copied("llama-tied")
    for folder in (made.base, *made.experts.values()):
        rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in opened(made).parameters
    rewrite(made.experts["two"], lambda tensors: tensors["lm_head.weight"].add_(1.0))
    refused(made, r"two.*stores lm_head.weight apart from model.embed_tokens.weight with other values")


def test_integers(copied: Copied, tmp_path: Path) -> None:
    made = copied("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(made.experts["one"], lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    refused(made, rf"one.*stores 1 tensor \({name}\) as int8", check_values=False)


@pytest.mark.parametrize("who", ["base", "one"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf(copied: Copied, tmp_path: Path, who: str, bad: float) -> None:
    made = copied("llama")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for layer in (0, 1):
            tensors[f"model.layers.{layer}.mlp.up_proj.weight"][1, 2] = bad

    rewrite(tmp_path / who, spoil)
    opened(made, check_values=False)
    refused(made, rf"{who}.*NaN or infinite values in 2 tensors \(model.layers.0.mlp.up_proj.weight, ")
