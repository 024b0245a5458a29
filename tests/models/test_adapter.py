"""Adapters: the merged tensors are peft's own, and the factors of every delta multiply out to it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, GptOssConfig, GptOssForCausalLM, PreTrainedModel

from optmerge.errors import ModelError
from optmerge.models.adapter import AdapterCheckpoint
from optmerge.models.checkpoint import open_checkpoint
from optmerge.models.family import Family, open_family
from optmerge.models.lora_factors import LoraFactors
from tests.models.peft_adapters import edit_config, peft, train
from tests.tiny import TinyFamily, make_model, save

Tiny = Callable[[str], TinyFamily]

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

# name -> (kind of model, options of the adapter, how many parameters come as factors, how many only as a whole)
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "down_proj"]}, 4, 0),
    "rslora": ("llama", {"target_modules": ["q_proj"], "use_rslora": True}, 2, 0),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"v_proj": 9},
        },
        4,
        0,
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}, 2, 0),
    "tied embedding": ("llama-tied", {"target_modules": ["embed_tokens"]}, 1, 0),
    "fan in, fan out": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, 6, 0),
    "modules to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "model.norm"]}, 2, 2),
    "trained biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}, 2, 0),
    "renamed by transformers": (
        "vit",
        {"target_modules": ["q_proj"], "task_type": None, "modules_to_save": ["classifier"]},
        2,
        2,
    ),
    "beside fused experts": ("mixtral", {"target_modules": ["q_proj", "o_proj"]}, 4, 0),
    "fused experts": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}, 6, 0),
    "one of two fused parameters": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS[:1]}, 2, 0),
    "the other one": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS[1:], "use_rslora": True}, 2, 0),
    "patterns of fused experts": (
        "mixtral",
        {
            "target_modules": [],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.down_proj": 2},
            "alpha_pattern": {"layers.1.mlp.experts.gate_up_proj": 9},
        },
        4,
        0,
    ),
    "the router": ("mixtral", {"target_modules": [], "target_parameters": ["gate.weight", EXPERTS[1]]}, 4, 0),
}


def _check_forms(family: Family, name: str = "x") -> list[int]:
    """How many parameters come as factors and how many only as a whole; every form must tell the truth."""
    counts = [0, 0]
    for parameter in family.parameters:
        form = family.delta_form(name, parameter)
        base, expert = family.read("base", parameter), family.read(name, parameter)
        if isinstance(form, LoraFactors):
            assert form.shape == tuple(base.shape)
            delta = expert.double() - base.double()
            torch.testing.assert_close(form.product(torch.float64), delta, rtol=0, atol=3e-7)
            assert delta.any()
            counts[0] += 1
        elif form == "unchanged":
            assert torch.equal(expert, base), parameter
        else:
            counts[1] += 1
    return counts


@pytest.mark.parametrize("case", CASES)
def test_equals_merge_and_unload(tiny: Tiny, tmp_path: Path, case: str) -> None:
    kind, options, factors, whole = CASES[case]
    base = tiny(kind).base
    expected = train(make_model(kind), tmp_path / "adapter", **{"task_type": "CAUSAL_LM", **options})
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    family = open_family(str(base), {"x": f"{base}+{tmp_path / 'adapter'}"}, relative_to=base)
    for name in family.parameters:
        assert torch.equal(family.read("x", name), expected[name]), name
    assert _check_forms(family) == [factors, whole]
    assert checkpoint.sha256() == family.experts["x"].sha256() != family.base.sha256()
    assert len(checkpoint.sources) == 2


def test_classifier_on_a_bare_body(tiny: Tiny, tmp_path: Path) -> None:
    """The prefix of the body is there in the adapter and not on disk, and the head is only in the adapter."""
    base = tiny("bert").base
    model = make_model("bert", num_labels=4)
    model.base_model.load_state_dict(make_model("bert-body").state_dict())
    expected = train(model, tmp_path / "adapter", task_type="SEQ_CLS", target_modules=["query", "dense"])
    family = open_family(str(base), {"x": f"{base}+{tmp_path / 'adapter'}"}, relative_to=base)
    assert (family.kind, family.heads) == ("sequence-classification", "own")
    assert family.configs["x"].num_labels == 4
    for name in (*family.parameters, *family.head_parameters):
        assert torch.equal(family.read("x", name), expected[name]), name
    assert _check_forms(family) == [9, 0]  # query and three dense layers in both layers, and the pooler


def test_a_square_matrix_of_conv1d_whatever_the_config_says(tiny: Tiny, tmp_path: Path) -> None:
    """peft stores what held for the last module that it wrapped, which need not hold for the others."""
    expected = train(make_model("gpt2"), tmp_path / "adapter", task_type="CAUSAL_LM", target_modules=["attn.c_proj"])
    for stored in (True, False):
        edit_config(tmp_path / "adapter", fan_in_fan_out=stored)
        checkpoint = open_checkpoint(f"{tiny('gpt2').base}+{tmp_path / 'adapter'}")
        name = "transformer.h.0.attn.c_proj.weight"
        assert torch.equal(checkpoint.read(name), expected[name])
    expected = train(make_model("llama"), tmp_path / "linear", task_type="CAUSAL_LM", target_modules=["q_proj"])
    edit_config(tmp_path / "linear", fan_in_fan_out=True)
    checkpoint = open_checkpoint(f"{tiny('llama').base}+{tmp_path / 'linear'}")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(checkpoint.read(name), expected[name])


def test_bfloat16_is_cast_once(tmp_path: Path) -> None:
    base = save(make_model("llama", dtype=torch.bfloat16), tmp_path / "base", "llama")
    train(make_model("llama"), tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    name = "model.layers.0.self_attn.q_proj"
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    origin = load_file(base / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(checkpoint.read(f"{name}.weight"), (origin.float() + b @ a * (5 / 3)).bfloat16())


def _of_separate_experts(folder: Path, *, ranks: dict[str, int], skip: int | None = None) -> None:
    """An adapter of Mixtral from before its experts were fused: factors for every expert's w1, w2 and w3."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}
    tensors = {}
    for layer in range(2):
        for expert in range(3):
            if expert == skip:
                continue
            for name, (rows, columns) in sizes.items():
                key = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{key}.lora_A.weight"] = 0.2 * torch.randn(ranks[name], columns, generator=generator)
                tensors[f"{key}.lora_B.weight"] = 0.2 * torch.randn(rows, ranks[name], generator=generator)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(sizes), task_type="CAUSAL_LM")
    config.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_experts_with_factors_of_their_own_are_stacked(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("mixtral").base
    _of_separate_experts(tmp_path / "adapter", ranks={"w1": 3, "w2": 3, "w3": 3})
    family = open_family(str(base), {"x": f"{base}+{tmp_path / 'adapter'}"}, relative_to=base)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft draws factors before it loads them
        warnings.simplefilter("ignore")  # of peft about what it makes of such an adapter's config
        wrapped = peft.PeftModel.from_pretrained(make_model("mixtral"), tmp_path / "adapter")
    expected = wrapped.merge_and_unload().state_dict()
    for name in family.parameters:
        assert torch.equal(family.read("x", name), expected[name]), name
    assert _check_forms(family) == [4, 0]


def test_experts_of_other_ranks_and_an_expert_without_factors(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("mixtral").base
    _of_separate_experts(tmp_path / "adapter", ranks={"w1": 3, "w2": 2, "w3": 1}, skip=1)
    family = open_family(str(base), {"x": f"{base}+{tmp_path / 'adapter'}"}, relative_to=base)
    assert _check_forms(family) == [4, 0]
    form = family.delta_form("x", "model.layers.0.mlp.experts.gate_up_proj")
    assert isinstance(form, LoraFactors)
    assert (form.b.shape, form.a.shape) == ((3, 48, 4), (3, 4, 16))
    assert not form.b[1].any()


def test_square_experts_that_are_stored_crosswise(tmp_path: Path) -> None:
    """Here every expert's down_proj is [in, out] with as many rows as columns: the shapes cannot tell."""

    def make() -> PreTrainedModel:
        config = GptOssConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_local_experts=3,
            num_experts_per_tok=2,
            layer_types=["full_attention"],
            pad_token_id=0,
        )
        with torch.random.fork_rng(devices=[]):
            model = GptOssForCausalLM(config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return model

    make().save_pretrained(tmp_path / "base")
    expected = train(make(), tmp_path / "adapter", task_type="CAUSAL_LM", target_modules=[], target_parameters=EXPERTS)
    reference = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    family = open_family(str(tmp_path / "base"), {"x": reference}, relative_to=tmp_path)
    for name in family.parameters:
        assert torch.equal(family.read("x", name), expected[name]), name
    assert _check_forms(family) == [2, 0]


def _swiglu(folder: Path) -> PreTrainedModel:
    """A model whose file holds two parameters in one tensor; it is cut on load."""
    config = Dinov2Config(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        use_swiglu_ffn=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dinov2Model(config)
    model.save_pretrained(folder)
    return model


def test_a_part_of_a_disk_tensor(tmp_path: Path) -> None:
    """The adapter names one of the parameters that the disk tensor is cut into."""
    model = _swiglu(tmp_path / "base")
    expected = train(model, tmp_path / "adapter", target_modules=["up_proj"])
    reference = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    family = open_family(str(tmp_path / "base"), {"x": reference}, relative_to=tmp_path)
    for name in family.parameters:
        assert torch.equal(family.read("x", name), expected[name]), name
    assert _check_forms(family) == [2, 0]


def test_a_disk_tensor_that_is_cut_on_load(tmp_path: Path) -> None:
    """The adapter names the disk tensor, from before it was cut."""
    _swiglu(tmp_path / "base")
    disk = "encoder.layer.0.mlp.weights_in.weight"
    rows, columns = open_checkpoint(str(tmp_path / "base")).tensors[disk].shape
    generator = torch.Generator().manual_seed(1)
    key = f"base_model.model.{disk.removesuffix('.weight')}"
    factors = {
        f"{key}.lora_A.weight": 0.2 * torch.randn(2, columns, generator=generator),
        f"{key}.lora_B.weight": 0.2 * torch.randn(rows, 2, generator=generator),
    }
    peft.LoraConfig(r=2, lora_alpha=2, target_modules=["weights_in"]).save_pretrained(tmp_path / "adapter")
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    reference = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    family = open_family(str(tmp_path / "base"), {"x": reference}, relative_to=tmp_path)
    assert _check_forms(family) == [2, 0]


@pytest.fixture
def pair(tiny: Tiny, tmp_path: Path) -> tuple[str, Path]:
    """A reference to a Llama with an adapter, and the adapter's folder."""
    train(make_model("llama"), tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    return f"{tiny('llama').base}+{tmp_path / 'adapter'}", tmp_path / "adapter"


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_the_factors_are_views_of_the_file(pair: tuple[str, Path], tiny: Tiny) -> None:
    base = tiny("llama").base
    family = open_family(str(base), {"x": pair[0]}, relative_to=base)
    name = "model.layers.0.self_attn.q_proj.weight"
    form = family.delta_form("x", name)
    assert isinstance(form, LoraFactors)
    assert form is family.delta_form("x", name)
    whole_file = (pair[1] / "adapter_model.safetensors").stat().st_size
    assert form.a.untyped_storage().nbytes() == form.b.untyped_storage().nbytes() == whole_file


@pytest.mark.parametrize("target", EXPERTS)
def test_stacked_factors_are_views_too(tiny: Tiny, tmp_path: Path, target: str) -> None:
    base = tiny("mixtral").base
    train(make_model("mixtral"), tmp_path / "adapter", target_modules=[], target_parameters=[target])
    family = open_family(str(base), {"x": f"{base}+{tmp_path / 'adapter'}"}, relative_to=base)
    form = family.delta_form("x", f"model.layers.0.{target}")
    assert isinstance(form, LoraFactors)
    whole_file = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert form.a.untyped_storage().nbytes() == form.b.untyped_storage().nbytes() == whole_file


def test_a_zero_factor_changes_nothing(pair: tuple[str, Path], tiny: Tiny) -> None:
    """As in an adapter that was made and never trained."""
    base = tiny("llama").base
    _rewrite(
        pair[1] / "adapter_model.safetensors",
        lambda tensors: [value.zero_() for name, value in tensors.items() if "layers.1" in name and "lora_B" in name],
    )
    family = open_family(str(base), {"x": pair[0]}, relative_to=base)
    assert family.delta_form("x", "model.layers.1.self_attn.q_proj.weight") == "unchanged"
    assert _check_forms(family) == [1, 0]


def test_an_adapter_on_another_folder_of_the_same_base(pair: tuple[str, Path], tiny: Tiny, tmp_path: Path) -> None:
    """Equal files, and equal values under a config that says something else."""
    base, copy = tiny("llama").base, tmp_path / "copy"
    shutil.copytree(base, copy)
    family = open_family(str(base), {"x": f"{copy}+{pair[1]}"}, relative_to=base)
    assert _check_forms(family) == [2, 0]
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "initializer_range": 0.5}))
    family = open_family(str(base), {"x": f"{copy}+{pair[1]}"}, relative_to=base)
    assert family.base.sha256() != open_checkpoint(str(copy)).sha256()
    assert _check_forms(family) == [2, 0]


def test_an_adapter_on_another_base(pair: tuple[str, Path], tiny: Tiny, tmp_path: Path) -> None:
    """Where its base has other values or another dtype, its factors are not its whole delta."""
    base, other = tiny("llama").base, tmp_path / "other"
    shutil.copytree(base, other)
    touched = ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"]
    _rewrite(other / "model.safetensors", lambda tensors: [tensors[name].mul_(1.5) for name in touched])
    family = open_family(str(base), {"x": f"{other}+{pair[1]}"}, relative_to=base)
    assert [name for name in family.parameters if family.delta_form("x", name) == "dense"] == touched
    assert _check_forms(family) == [1, 2]
    narrow = save(make_model("llama", dtype=torch.bfloat16), tmp_path / "narrow", "llama")
    family = open_family(str(base), {"x": f"{narrow}+{pair[1]}"}, relative_to=base)
    assert _check_forms(family) == [0, len(family.parameters)]


def test_full_experts_come_as_a_whole(tiny: Tiny) -> None:
    models = tiny("llama")
    family = open_family(str(models.base), {"x": str(models.experts["one"])}, relative_to=models.base)
    assert _check_forms(family) == [0, len(family.parameters)]


def test_nan_in_an_adapter_is_found(pair: tuple[str, Path], tiny: Tiny) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"][0, 0] = float("nan")

    _rewrite(pair[1] / "adapter_model.safetensors", spoil)
    with pytest.raises(ModelError, match=r"NaN.*model.layers.1.self_attn.q_proj.weight"):
        open_family(str(tiny("llama").base), {"x": pair[0]}, relative_to=Path())


def test_factors_whose_product_overflows_are_found(pair: tuple[str, Path], tiny: Tiny) -> None:
    def swell(tensors: dict[str, torch.Tensor]) -> None:
        for letter in "AB":
            tensors[f"base_model.model.model.layers.1.self_attn.q_proj.lora_{letter}.weight"].fill_(1e20)

    _rewrite(pair[1] / "adapter_model.safetensors", swell)
    with pytest.raises(ModelError, match=r"infinite values in 1 tensor \(model.layers.1.self_attn.q_proj.weight\)"):
        open_family(str(tiny("llama").base), {"x": pair[0]}, relative_to=Path())


def test_a_sound_adapter_is_not_multiplied_out_to_look_for_nan(
    pair: tuple[str, Path], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdapterCheckpoint, "read", lambda *_: pytest.fail("a tensor was merged"))
    base = tiny("llama").base
    open_family(str(base), {"x": pair[0]}, relative_to=base)


def test_nan_in_the_base_is_the_adapters_too(pair: tuple[str, Path], tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("llama").base, tmp_path / "bad")
    _rewrite(tmp_path / "bad" / "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"The expert x .*NaN.*model.norm.weight"):
        open_family(str(tiny("llama").base), {"x": f"{tmp_path / 'bad'}+{pair[1]}"}, relative_to=Path())
