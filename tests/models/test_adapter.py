"""Adapters: the merged tensors are peft's own, and what is not plain LoRA is refused by name."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from optmerge.errors import MissingExtraError, ModelError
from optmerge.models.checkpoint import open_checkpoint
from optmerge.models.family import open_family
from tests.tiny import TinyFamily, make_model, save

peft = pytest.importorskip("peft")

Tiny = Callable[[str], TinyFamily]


def _train(model: PreTrainedModel, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Save an adapter with random factors; returns what peft merges it to."""
    generator = torch.Generator().manual_seed(7)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of peft about its own options
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **options}))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        wrapped.save_pretrained(folder)
        merged: dict[str, torch.Tensor] = wrapped.merge_and_unload().state_dict()
    return merged


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"v_proj": 9},
        },
    ),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied embedding": ("llama-tied", {"target_modules": ["embed_tokens"]}),
    "fan in, fan out": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "modules to save": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "trained biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "renamed by transformers": (
        "vit",
        {"target_modules": ["q_proj"], "task_type": None, "modules_to_save": ["classifier"]},
    ),
    "beside fused experts": ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_merge_and_unload(tiny: Tiny, tmp_path: Path, case: str) -> None:
    kind, options = CASES[case]
    base = tiny(kind).base
    expected = _train(make_model(kind), tmp_path / "adapter", **{"task_type": "CAUSAL_LM", **options})
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    family = open_family(str(base), {"x": f"{base}+{tmp_path / 'adapter'}"}, relative_to=base)
    changed = 0
    for name in family.parameters:
        assert torch.equal(family.read("x", name), expected[name]), name
        changed += not torch.equal(family.read("x", name), family.read("base", name))
    assert changed
    assert checkpoint.sha256() == family.experts["x"].sha256() != family.base.sha256()
    assert len(checkpoint.sources) == 2


def test_classifier_on_a_bare_body(tiny: Tiny, tmp_path: Path) -> None:
    """The prefix of the body is there in the adapter and not on disk, and the head is only in the adapter."""
    base = tiny("bert").base
    model = make_model("bert", num_labels=4)
    model.base_model.load_state_dict(make_model("bert-body").state_dict())
    expected = _train(model, tmp_path / "adapter", task_type="SEQ_CLS", target_modules=["query", "dense"])
    family = open_family(str(base), {"x": f"{base}+{tmp_path / 'adapter'}"}, relative_to=base)
    assert (family.kind, family.heads) == ("sequence-classification", "own")
    assert family.configs["x"].num_labels == 4
    for name in (*family.parameters, *family.head_parameters):
        assert torch.equal(family.read("x", name), expected[name]), name


def test_bfloat16_is_cast_once(tmp_path: Path) -> None:
    base = save(make_model("llama", dtype=torch.bfloat16), tmp_path / "base", "llama")
    _train(make_model("llama"), tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    name = "model.layers.0.self_attn.q_proj"
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    origin = load_file(base / "model.safetensors")[f"{name}.weight"]
    assert torch.equal(checkpoint.read(f"{name}.weight"), (origin.float() + b @ a * (5 / 3)).bfloat16())


@pytest.fixture
def pair(tiny: Tiny, tmp_path: Path) -> tuple[str, Path]:
    """A reference to a Llama with an adapter, and the adapter's folder."""
    _train(make_model("llama"), tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    return f"{tiny('llama').base}+{tmp_path / 'adapter'}", tmp_path / "adapter"


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"peft_type": "LOHA"}, "of the type LOHA"),
        ({"peft_type": "PROMPT_TUNING"}, "of the type PROMPT_TUNING"),
        ({"init_lora_weights": "pissa"}, "started with pissa"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"lora_bias": True, "bias": "none"}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
    ],
)
def test_other_kinds_are_refused_by_name(pair: tuple[str, Path], changes: dict[str, object], said: str) -> None:
    _edit(pair[1], **changes)
    with pytest.raises(ModelError, match=said):
        open_checkpoint(pair[0])


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def test_half_foreign_and_misfitting_updates(pair: tuple[str, Path]) -> None:
    reference, folder = pair
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    original = load_file(folder / "adapter_model.safetensors")
    original = {name: value.clone() for name, value in original.items()}

    def written(changes: dict[str, torch.Tensor | None]) -> None:
        tensors = {name: value for name, value in {**original, **changes}.items() if value is not None}
        save_file(tensors, folder / "adapter_model.safetensors")

    written({key: None})
    with pytest.raises(ModelError, match=r"half an update of model.layers.0.self_attn.q_proj: lora_A"):
        open_checkpoint(reference)
    written({key: torch.ones(3, 99)})
    with pytest.raises(ModelError, match=r"does not fit .*\[16, 3\] and \[3, 99\].*\[16, 16\]"):
        open_checkpoint(reference)
    elsewhere = key.replace("layers.0", "layers.9")
    written({elsewhere: torch.ones(3, 16), elsewhere.replace("lora_A", "lora_B"): torch.ones(16, 3)})
    with pytest.raises(ModelError, match=r"changes model.layers.9.self_attn.q_proj.weight, which is unknown"):
        open_checkpoint(reference)
    written({key.replace("lora_A", "lora_magnitude_vector"): torch.ones(3)})
    with pytest.raises(ModelError, match="which plain LoRA does not have"):
        open_checkpoint(reference)


def test_truncated_pickled_and_no_adapter(pair: tuple[str, Path], tiny: Tiny) -> None:
    reference, folder = pair
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-4])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is truncated"):
        open_checkpoint(reference)
    path.write_bytes(raw)
    tensors = load_file(path)
    expected = open_checkpoint(reference).read("model.layers.0.self_attn.q_proj.weight")
    path.unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="--allow-pickle"):
        open_checkpoint(reference)
    pickled = open_checkpoint(reference, allow_pickle=True)
    assert torch.equal(pickled.read("model.layers.0.self_attn.q_proj.weight"), expected)
    base = tiny("llama").base
    with pytest.raises(ModelError, match="is not an adapter"):
        open_checkpoint(f"{base}+{base}")
    with pytest.raises(ModelError, match=r"is an adapter without the model.*Write model\+adapter"):
        open_checkpoint(str(folder))


def test_without_peft(pair: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'optmerge\[peft\]'"):
        open_checkpoint(pair[0])


def test_nan_in_an_adapter_is_found(pair: tuple[str, Path], tiny: Tiny) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"][0, 0] = float("nan")

    _rewrite(pair[1], spoil)
    with pytest.raises(ModelError, match=r"NaN.*model.layers.1.self_attn.q_proj.weight"):
        open_family(str(tiny("llama").base), {"x": pair[0]}, relative_to=Path())
