"""Roles of parameters, on architectures that arrange their modules in different ways."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from optmerge.models.roles import Role, roles

_COMMON: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = {**_COMMON, "num_key_value_heads": 1, "tie_word_embeddings": False}
_TIED = {**_LLAMA, "tie_word_embeddings": True}
_VISION = {**_COMMON, "image_size": 8, "patch_size": 4}
_DISTIL = {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 16}
_GPT2 = {
    "vocab_size": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 12, "num_layers": 2, "num_heads": 2}
_OPT = {**_COMMON, "ffn_dim": 12, "word_embed_proj_dim": 8}
_BART = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 16,
}
_SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2}
_MAMBA = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2}
_MODERN = {**_COMMON, "cls_token_id": 1, "sep_token_id": 2}
_LLAVA = {
    "text_config": {"model_type": "llama", **_LLAMA},
    "vision_config": {"model_type": "clip_vision_model", **_VISION},
    "image_token_index": 3,
}
_CONVNEXT = {"hidden_sizes": [4, 8], "depths": [1, 2], "num_stages": 2}


def made(model: str, config: str, values: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        result: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**values))
    return result


# (model class, config class, config, one parameter of each kind -> its role)
ARCHITECTURES: list[tuple[str, str, dict[str, Any], dict[str, Role]]] = [
    (
        "BertForSequenceClassification",
        "BertConfig",
        _COMMON,
        {
            "bert.embeddings.word_embeddings.weight": Role("embedding", None),
            "bert.embeddings.LayerNorm.weight": Role("embedding", None),
            "bert.encoder.layer.1.attention.self.query.bias": Role("attention", 1),
            "bert.encoder.layer.1.attention.output.dense.weight": Role("attention", 1),
            "bert.encoder.layer.1.attention.output.LayerNorm.bias": Role("norm", 1),
            "bert.encoder.layer.0.intermediate.dense.weight": Role("mlp", 0),
            "bert.encoder.layer.0.output.dense.bias": Role("mlp", 0),
            "bert.pooler.dense.weight": Role("other", None),
            "classifier.weight": Role("head", None),
        },
    ),
    (
        "BertForMaskedLM",
        "BertConfig",
        _COMMON,
        {
            "bert.embeddings.word_embeddings.weight": Role("embedding", None),
            "cls.predictions.transform.LayerNorm.weight": Role("head", None),
            "cls.predictions.bias": Role("head", None),
        },
    ),
    (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        _COMMON,
        {
            "roberta.embeddings.position_embeddings.weight": Role("embedding", None),
            "classifier.dense.weight": Role("head", None),
        },
    ),
    (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _DISTIL,
        {
            "distilbert.transformer.layer.1.attention.out_lin.weight": Role("attention", 1),
            "distilbert.transformer.layer.1.sa_layer_norm.weight": Role("norm", 1),
            "distilbert.transformer.layer.1.ffn.lin2.weight": Role("mlp", 1),
            "pre_classifier.weight": Role("head", None),
        },
    ),
    (
        "LlamaForCausalLM",
        "LlamaConfig",
        _LLAMA,
        {
            "model.embed_tokens.weight": Role("embedding", None),
            "model.layers.1.self_attn.o_proj.weight": Role("attention", 1),
            "model.layers.1.mlp.down_proj.weight": Role("mlp", 1),
            "model.layers.1.post_attention_layernorm.weight": Role("norm", 1),
            "model.norm.weight": Role("final-norm", None),
            "lm_head.weight": Role("head", None),
        },
    ),
    ("LlamaForCausalLM", "LlamaConfig", _TIED, {"model.embed_tokens.weight": Role("embedding", None)}),
    ("LlamaForSequenceClassification", "LlamaConfig", _LLAMA, {"score.weight": Role("head", None)}),
    ("MistralForCausalLM", "MistralConfig", _LLAMA, {"model.layers.0.self_attn.q_proj.weight": Role("attention", 0)}),
    ("Qwen2ForCausalLM", "Qwen2Config", _LLAMA, {"model.layers.0.self_attn.q_proj.bias": Role("attention", 0)}),
    (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**_LLAMA, "head_dim": 8},
        {"model.layers.1.self_attn.q_norm.weight": Role("norm", 1)},
    ),
    (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_TIED, "head_dim": 8},
        {
            "model.layers.1.pre_feedforward_layernorm.weight": Role("norm", 1),
            "model.norm.weight": Role("final-norm", None),
        },
    ),
    (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_LLAMA, "num_local_experts": 2},
        {
            "model.layers.1.mlp.gate.weight": Role("mlp", 1),
            "model.layers.1.mlp.experts.gate_up_proj": Role("mlp", 1),
            "model.norm.weight": Role("final-norm", None),
        },
    ),
    (
        "GPT2LMHeadModel",
        "GPT2Config",
        _GPT2,
        {
            "transformer.wpe.weight": Role("embedding", None),
            "transformer.h.1.ln_2.bias": Role("norm", 1),
            "transformer.h.1.attn.c_proj.weight": Role("attention", 1),
            "transformer.h.1.mlp.c_proj.weight": Role("mlp", 1),
            "transformer.ln_f.weight": Role("final-norm", None),
        },
    ),
    (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        _COMMON,
        {
            "gpt_neox.layers.1.attention.dense.weight": Role("attention", 1),
            "gpt_neox.layers.1.mlp.dense_4h_to_h.bias": Role("mlp", 1),
            "gpt_neox.final_layer_norm.weight": Role("final-norm", None),
        },
    ),
    (  # its final norm is registered before its layers
        "OPTForCausalLM",
        "OPTConfig",
        _OPT,
        {
            "model.decoder.embed_positions.weight": Role("embedding", None),
            "model.decoder.layers.1.fc2.weight": Role("mlp", 1),
            "model.decoder.layers.1.final_layer_norm.weight": Role("norm", 1),
            "model.decoder.final_layer_norm.weight": Role("final-norm", None),
        },
    ),
    (
        "T5ForConditionalGeneration",
        "T5Config",
        _T5,
        {
            "shared.weight": Role("embedding", None),
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": Role("attention", 0),
            "encoder.block.1.layer.1.DenseReluDense.wo.weight": Role("mlp", 1),
            "encoder.final_layer_norm.weight": Role("final-norm", None),
            "decoder.block.0.layer.1.EncDecAttention.o.weight": Role("attention", 2),
            "decoder.block.1.layer.2.layer_norm.weight": Role("norm", 3),
            "decoder.final_layer_norm.weight": Role("final-norm", None),
        },
    ),
    (  # the norm of its embeddings is registered after its layers
        "BartForConditionalGeneration",
        "BartConfig",
        _BART,
        {
            "model.encoder.layernorm_embedding.weight": Role("embedding", None),
            "model.decoder.embed_positions.weight": Role("embedding", None),
            "model.decoder.layers.0.encoder_attn.out_proj.weight": Role("attention", 2),
            "model.decoder.layers.1.fc1.weight": Role("mlp", 3),
        },
    ),
    (
        "ViTForImageClassification",
        "ViTConfig",
        _VISION,
        {
            "vit.embeddings.cls_token": Role("embedding", None),
            "vit.embeddings.patch_embeddings.projection.weight": Role("embedding", None),
            "vit.layers.1.attention.o_proj.weight": Role("attention", 1),
            "vit.layers.1.mlp.fc2.weight": Role("mlp", 1),
            "vit.layers.1.layernorm_before.weight": Role("norm", 1),
            "vit.layernorm.weight": Role("final-norm", None),
            "classifier.weight": Role("head", None),
        },
    ),
    (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        _VISION,
        {
            "embeddings.class_embedding": Role("embedding", None),
            "pre_layrnorm.weight": Role("embedding", None),
            "encoder.layers.1.layer_norm2.weight": Role("norm", 1),
            "post_layernorm.weight": Role("final-norm", None),
        },
    ),
    (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        _VISION,
        {
            "dinov2.embeddings.mask_token": Role("embedding", None),
            "dinov2.encoder.layer.1.layer_scale1.lambda1": Role("other", 1),
            "dinov2.encoder.layer.1.mlp.fc1.weight": Role("mlp", 1),
            "dinov2.layernorm.weight": Role("final-norm", None),
        },
    ),
    (  # a language model that sees: its own layers come first
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        _LLAVA,
        {
            "model.vision_tower.embeddings.class_embedding": Role("embedding", None, "vision"),
            "model.vision_tower.encoder.layers.0.self_attn.k_proj.weight": Role("attention", 2, "vision"),
            "model.vision_tower.encoder.layers.1.layer_norm2.weight": Role("norm", 3, "vision"),
            "model.vision_tower.post_layernorm.weight": Role("final-norm", None, "vision"),
            "model.multi_modal_projector.linear_1.weight": Role("other", None, "connector"),
            "model.language_model.embed_tokens.weight": Role("embedding", None),
            "model.language_model.layers.0.self_attn.q_proj.weight": Role("attention", 0),
            "model.language_model.norm.weight": Role("final-norm", None),
            "lm_head.weight": Role("head", None),
        },
    ),
    (  # layers within stages, and a reduction after each stage
        "SwinForImageClassification",
        "SwinConfig",
        _SWIN,
        {
            "swin.encoder.layers.0.blocks.0.mlp.fc1.weight": Role("mlp", 0),
            "swin.encoder.layers.0.downsample.reduction.weight": Role("mlp", 0),
            "swin.encoder.layers.0.downsample.norm.weight": Role("norm", 0),
            "swin.encoder.layers.1.blocks.1.attention.q_proj.weight": Role("attention", 2),
            "swin.layernorm.weight": Role("final-norm", None),
        },
    ),
    (
        "ModernBertModel",
        "ModernBertConfig",
        _MODERN,
        {"layers.1.attn.Wqkv.weight": Role("attention", 1), "final_norm.weight": Role("final-norm", None)},
    ),
    (  # no attention at all
        "MambaForCausalLM",
        "MambaConfig",
        _MAMBA,
        {
            "backbone.layers.1.mixer.in_proj.weight": Role("attention", 1),
            "backbone.layers.1.norm.weight": Role("norm", 1),
            "backbone.norm_f.weight": Role("final-norm", None),
        },
    ),
    # neither token mixing nor marked layers: the stages count as layers
    ("ConvNextModel", "ConvNextConfig", _CONVNEXT, {"encoder.stages.1.layers.1.pwconv1.weight": Role("mlp", 1)}),
]


@pytest.mark.parametrize(
    ("model", "config", "values", "expected"), ARCHITECTURES, ids=[entry[0] for entry in ARCHITECTURES]
)
@pytest.mark.filterwarnings("ignore")
def test_roles(model: str, config: str, values: dict[str, Any], expected: dict[str, Role]) -> None:
    tree = made(model, config, values)
    found = roles(tree)
    assert list(found) == [name for name, _ in tree.named_parameters()]
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("model", "config", "values"), [entry[:3] for entry in ARCHITECTURES[:10]])
def test_every_layer_has_the_same_roles_and_none_is_left_out(model: str, config: str, values: dict[str, Any]) -> None:
    found = roles(made(model, config, values))
    layers = sorted({role.layer for role in found.values() if role.layer is not None})
    assert layers == [0, 1]
    kinds = [Counter(role.kind for role in found.values() if role.layer == layer) for layer in layers]
    assert kinds[0] == kinds[1]
    assert set(kinds[0]) == {"attention", "mlp", "norm"}


def test_a_tied_head_has_no_role_of_its_own() -> None:
    found = roles(made("LlamaForCausalLM", "LlamaConfig", _TIED))
    assert "lm_head.weight" not in found
    assert not any(role.kind == "head" for role in found.values())


def test_a_plain_module_without_layers_is_other() -> None:
    assert roles(nn.Linear(2, 3)) == {"weight": Role("other", None), "bias": Role("other", None)}
