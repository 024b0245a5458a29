"""The checkpoint map, verified by value against transformers' own loading."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from optmerge.errors import ModelError
from optmerge.models.conversions import checkpoint_map
from optmerge.models.mapping import CheckpointMap
from tests.models.stand_in import HeaderCheckpoint, MemoryCheckpoint, saved
from tests.tiny import TinyFamily, make_model

_COMMON: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_DISTIL = {"vocab_size": 32, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 16}
_T5 = {"vocab_size": 32, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
_MOE = {**_COMMON, "num_experts": 3, "moe_intermediate_size": 4, "shared_expert_intermediate_size": 4}

# Architectures that tests.tiny does not have: name -> (config class, model class, config)
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {**_COMMON, "num_labels": 3}),
    "distilbert": ("DistilBertConfig", "DistilBertForSequenceClassification", _DISTIL),
    "bert-lm": ("BertConfig", "BertForMaskedLM", _COMMON),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "clip-vision": ("CLIPVisionConfig", "CLIPVisionModel", _VISION),
    "dinov2-swiglu": ("Dinov2Config", "Dinov2Model", {**_VISION, "use_swiglu_ffn": True}),
    "qwen2-moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", {**_MOE, "num_key_value_heads": 1}),
}
TINY = ("bert", "bert-body", "llama", "llama-tied", "qwen2", "mixtral", "vit", "gpt2")


def make(kind: str) -> PreTrainedModel:
    if kind in TINY:
        return make_model(kind)
    config_name, model_name, values = MORE[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, model_name)(getattr(transformers, config_name)(**values))
    return model


def on_meta(model: PreTrainedModel, **config: Any) -> PreTrainedModel:
    made = type(model.config).from_dict({**model.config.to_dict(), **config})
    with torch.device("meta"):
        return type(model)(made)


def all_split(layout: CheckpointMap, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    used = dict.fromkeys(piece.disk for piece in layout.pieces)
    return {disk: layout.disk_tensor(disk, values) for disk in used}


@pytest.mark.parametrize("kind", [*TINY, *MORE])
def test_map_agrees_with_from_pretrained_and_inverts(kind: str, tmp_path: Path) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    checkpoint = saved(tmp_path)
    layout = checkpoint_map(on_meta(model), checkpoint)
    loaded = dict(type(model).from_pretrained(tmp_path).named_parameters())
    read = {name: layout.read(checkpoint, name) for name in loaded}
    assert all(torch.equal(read[name], loaded[name]) for name in loaded)
    assert not layout.missing
    assert not layout.mismatched
    back = all_split(layout, read)
    assert set(back) | set(layout.unused) == set(checkpoint.values)
    assert all(torch.equal(back[disk], checkpoint.values[disk]) for disk in back)
    assert all(back[disk].dtype == checkpoint.values[disk].dtype for disk in back)


@pytest.mark.parametrize("kind", ["bert", "llama-tied", "mixtral", "vit"])
def test_split_of_one_parameter_is_the_inverse_of_read(kind: str, tiny: Callable[[str], TinyFamily]) -> None:
    checkpoint = saved(tiny(kind).experts["one"])
    layout = checkpoint_map(on_meta(make(kind)), checkpoint)
    for parameter in dict.fromkeys(piece.parameter for piece in layout.pieces):
        parts = layout.split(parameter, layout.read(checkpoint, parameter))
        assert tuple(parts) == layout.disk_names(parameter)
        for disk, value in parts.items():
            assert torch.equal(value, checkpoint.values[disk])
            assert layout.parameter_of(disk) == parameter


def test_one_disk_tensor_is_read_without_a_copy(tiny: Callable[[str], TinyFamily]) -> None:
    checkpoint = saved(tiny("vit").base)
    layout = checkpoint_map(on_meta(make("vit")), checkpoint)
    name = "vit.layers.0.attention.q_proj.weight"
    (disk,) = layout.disk_names(name)
    assert disk != name
    assert layout.read(checkpoint, name).data_ptr() == checkpoint.values[disk].data_ptr()


def test_tensors_that_share_one_storage_are_told_apart(tiny: Callable[[str], TinyFamily]) -> None:
    """A mapped file gives tensors that start in the middle of their storage."""
    checkpoint = saved(tiny("mixtral").base)
    flat = torch.cat([value.flatten() for value in checkpoint.values.values()])
    ends = torch.tensor([value.numel() for value in checkpoint.values.values()]).cumsum(0).tolist()
    inside = {
        name: flat[end - value.numel() : end].view(value.shape)
        for (name, value), end in zip(checkpoint.values.items(), ends, strict=True)
    }
    layout = checkpoint_map(on_meta(make("mixtral")), checkpoint)
    for parameter in dict.fromkeys(piece.parameter for piece in layout.pieces):
        value = layout.read(MemoryCheckpoint(inside), parameter)
        assert torch.equal(value, layout.read(checkpoint, parameter))


def test_mixtral_experts_are_pieces_of_one_parameter() -> None:
    model = make("mixtral")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    shapes = {
        f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight": (24, 16) for e in range(3) for w in ("w1", "w3")
    }
    layout = checkpoint_map(on_meta(model), HeaderCheckpoint(shapes))
    where = {piece.disk.partition("experts.")[2]: piece.index for piece in layout.pieces}
    assert where["2.w3.weight"] == (slice(2, 3), slice(24, 48), slice(0, 16))
    assert layout.mismatched == {}
    assert name not in layout.missing
    assert "lm_head.weight" in layout.missing


def test_a_map_of_a_big_model_needs_headers_only() -> None:
    config = transformers.MixtralConfig(num_hidden_layers=1)  # 8 experts of 14336 x 4096
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    prefix = "model.layers.0.block_sparse_moe.experts"
    shapes = {f"{prefix}.{e}.w2.weight": (4096, 14336) for e in range(8)}
    shapes |= {f"{prefix}.{e}.{w}.weight": (14336, 4096) for e in range(8) for w in ("w1", "w3")}
    layout = checkpoint_map(model, HeaderCheckpoint(shapes))
    assert len(layout.pieces) == 24
    assert not layout.mismatched


def test_too_few_experts_on_disk_is_a_mismatch() -> None:
    prefix = "model.layers.0.block_sparse_moe.experts"
    layout = checkpoint_map(
        on_meta(make("mixtral")), HeaderCheckpoint({f"{prefix}.{e}.w2.weight": (16, 24) for e in (0, 1)})
    )
    assert layout.mismatched == {"model.layers.0.mlp.experts.down_proj": ((2, 16, 24), (3, 16, 24))}


def test_a_bare_body_fits_a_class_with_a_head() -> None:
    classifier = make("bert")
    body = MemoryCheckpoint({name: value.detach() for name, value in classifier.base_model.state_dict().items()})
    layout = checkpoint_map(on_meta(classifier), body)
    assert layout.missing == ("classifier.weight", "classifier.bias")
    assert layout.disk_names("bert.pooler.dense.weight") == ("pooler.dense.weight",)
    with pytest.raises(ModelError, match=r"no tensor for the model's parameter 'classifier\.weight'"):
        layout.read(body, "classifier.weight")


def test_a_checkpoint_with_a_head_fits_the_bare_body() -> None:
    classifier = make("bert")
    checkpoint = MemoryCheckpoint(classifier.state_dict())
    layout = checkpoint_map(on_meta(make("bert-body")), checkpoint)
    assert layout.unused == ("classifier.weight", "classifier.bias")
    assert layout.disk_names("pooler.dense.weight") == ("bert.pooler.dense.weight",)
    with pytest.raises(ModelError, match=r"'classifier\.weight' is not taken by any parameter"):
        layout.parameter_of("classifier.weight")


def test_other_shapes_are_reported_with_both_shapes() -> None:
    model = make("bert")
    layout = checkpoint_map(on_meta(model, num_labels=5), MemoryCheckpoint(model.state_dict()))
    assert layout.mismatched == {"classifier.weight": ((2, 16), (5, 16)), "classifier.bias": ((2,), (5,))}


def test_buffers_on_disk_are_unused_and_old_names_are_known() -> None:
    model = make("bert-body")
    values = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in model.state_dict().items()}
    checkpoint = MemoryCheckpoint({**values, "embeddings.position_ids": torch.arange(64)[None]})
    layout = checkpoint_map(on_meta(model), checkpoint)
    assert layout.unused == ("embeddings.position_ids",)
    assert layout.disk_names("embeddings.LayerNorm.weight") == ("embeddings.LayerNorm.gamma",)


def test_persistent_buffers_are_known() -> None:
    values = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    with torch.random.fork_rng(devices=[]):
        model = transformers.ResNetModel(transformers.ResNetConfig(**values))
    checkpoint = MemoryCheckpoint(model.state_dict())
    layout = checkpoint_map(on_meta(model), checkpoint)
    name = "embedder.embedder.normalization.running_var"
    assert name in layout.buffers
    assert name in layout.unused
    assert torch.equal(layout.read(checkpoint, name), model.state_dict()[name])


@pytest.mark.parametrize("present", [("model.embed_tokens.weight",), ("lm_head.weight",)])
def test_either_name_of_a_tied_pair_fills_the_parameter(present: tuple[str, ...]) -> None:
    model = make("llama-tied")
    values = {name: value for name, value in model.state_dict().items() if "embed" not in name and "head" not in name}
    checkpoint = MemoryCheckpoint({**values, present[0]: model.state_dict()[present[0]]})
    layout = checkpoint_map(on_meta(model), checkpoint)
    assert layout.disk_names("model.embed_tokens.weight") == present
    assert not layout.duplicates
    assert not layout.missing


def test_both_names_of_a_tied_pair_are_written_alike() -> None:
    model = make("llama-tied")
    checkpoint = MemoryCheckpoint(model.state_dict())
    layout = checkpoint_map(on_meta(model), checkpoint)
    assert layout.duplicates == {"lm_head.weight": "model.embed_tokens.weight"}
    assert layout.parameter_of("lm_head.weight") == "model.embed_tokens.weight"
    merged = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    parts = layout.split("model.embed_tokens.weight", merged)
    assert torch.equal(parts["lm_head.weight"], merged)
    assert torch.equal(parts["model.embed_tokens.weight"], merged)


def test_a_disk_tensor_of_two_parameters_needs_both_values(tmp_path: Path) -> None:
    model = make("dinov2-swiglu")
    model.save_pretrained(tmp_path)
    layout = checkpoint_map(on_meta(model), saved(tmp_path))
    disk = "encoder.layer.0.mlp.weights_in.weight"
    gate, up = layout.parameters_of(disk)
    with pytest.raises(ModelError, match="only be written when all their values are given"):
        layout.split(gate, torch.zeros(model.get_parameter(gate).shape))
    assert (gate, up) == ("encoder.layer.0.mlp.gate_proj.weight", "encoder.layer.0.mlp.up_proj.weight")


def test_unknown_names_get_near_matches() -> None:
    model = make("llama")
    layout = checkpoint_map(on_meta(model), MemoryCheckpoint(model.state_dict()))
    with pytest.raises(ModelError, match=r"Did you mean 'model\.norm\.weight'"):
        layout.disk_names("model.norms.weight")
    with pytest.raises(ModelError, match=r"not in the checkpoint.*Did you mean 'lm_head\.weight'"):
        layout.parameter_of("lm_heads.weight")


def test_a_conversion_that_cannot_be_followed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.core_model_loading import MergeModulelist

    class Doubling(MergeModulelist):
        def convert(self, input_dict: Any, *args: Any, **kwargs: Any) -> Any:
            return {name: 2 * value for name, value in super().convert(input_dict, *args, **kwargs).items()}

    from transformers import conversion_mapping

    mapping = conversion_mapping.get_model_conversion_mapping(on_meta(make("mixtral")))
    for transform in mapping:
        if hasattr(transform, "operations"):
            transform.operations = [Doubling(dim=0), *transform.operations[1:]]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda model: mapping)
    prefix = "model.layers.0.block_sparse_moe.experts"
    checkpoint = HeaderCheckpoint({f"{prefix}.{e}.w2.weight": (16, 24) for e in range(3)})
    with pytest.raises(ModelError, match=r"down_proj.*by Doubling; optmerge cannot follow that .*'r?mul'"):
        checkpoint_map(on_meta(make("mixtral")), checkpoint)


def test_quantized_checkpoints_are_refused() -> None:
    model = on_meta(make("llama"))
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ModelError, match="is quantized"):
        checkpoint_map(model, HeaderCheckpoint({}))


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = make("mixtral")
    with caplog.at_level(logging.WARNING):
        checkpoint_map(on_meta(model), MemoryCheckpoint(model.state_dict()))
    assert not caplog.records
