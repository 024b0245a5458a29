"""Which tensors mergekit-yaml 0.1.5 handles exactly, per architecture.

mergekit-yaml merges the tensors that its own architecture definition lists: it silently leaves out any other, fails
on one that is missing, and tests a ``filter`` against the definition's name, which for some models is not the name on
disk. So a config for it is only written when the architecture is one of these and the names on disk are exactly these;
a test beside mergekit itself (tests/peers) compares this table with its definitions. Every other model takes the
mergekit-pytorch form, which knows nothing of architectures.

    LAYOUTS["LlamaForCausalLM"].misfit(names, num_layers=32)     # None, or what does not fit
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensor names of one architecture.

    Attributes:
        layer: Prefix of a layer's tensors; ``{}`` is its index.
        in_layer: Names after that prefix.
        outside: Names outside the layers.
        optional: Names outside the layers that may be absent.
    """

    layer: str
    in_layer: tuple[str, ...]
    outside: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def required(self, num_layers: int) -> set[str]:
        """Every name that must be there."""
        layers = {self.layer.format(index) + name for index in range(num_layers) for name in self.in_layer}
        return layers | set(self.outside)

    def misfit(self, names: Collection[str], num_layers: int) -> str | None:
        """The first difference between ``names`` and this layout, in words; None when there is none."""
        required = self.required(num_layers)
        if missing := sorted(required - set(names)):
            return f"it expects a tensor {missing[0]} ({len(missing)} such are missing)"
        if extra := sorted(set(names) - required - set(self.optional)):
            return f"it would drop the tensor {extra[0]} ({len(extra)} such)"
        return None


def _affine(*modules: str) -> tuple[str, ...]:
    return tuple(f"{module}.{part}" for module in modules for part in ("weight", "bias"))


def _weights(*modules: str) -> tuple[str, ...]:
    return tuple(f"{module}.weight" for module in modules)


_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_QKV_BIAS = ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
_BERT_LAYER = _affine(
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_BERT_EMBEDDINGS = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
)
_GPT2_LAYER = _affine("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
_DISTILBERT_LAYER = _affine(
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)


def _decoder(in_layer: tuple[str, ...]) -> Layout:
    outside = ("model.embed_tokens.weight", "model.norm.weight")
    return Layout("model.layers.{}.", in_layer, outside, optional=("lm_head.weight",))


def _bert(prefix: str, outside: tuple[str, ...], optional: tuple[str, ...] = ()) -> Layout:
    return Layout(
        f"{prefix}encoder.layer.{{}}.",
        _BERT_LAYER,
        tuple(f"{prefix}embeddings.{name}" for name in _BERT_EMBEDDINGS) + outside,
        (f"{prefix}embeddings.position_ids", *optional),
    )


_LLAMA = _decoder(_weights(*_NORMS, *_ATTENTION, *_MLP))

LAYOUTS: dict[str, Layout] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _decoder(_weights(*_NORMS, *_ATTENTION, *_MLP) + _QKV_BIAS),
    "Qwen3ForCausalLM": _decoder(_weights(*_NORMS, *_ATTENTION, "self_attn.q_norm", "self_attn.k_norm", *_MLP)),
    "Gemma2ForCausalLM": _decoder(
        _weights(*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm", *_ATTENTION, *_MLP)
    ),
    "GPT2LMHeadModel": Layout(
        "transformer.h.{}.",
        _GPT2_LAYER,
        ("transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"),
        optional=("lm_head.weight",),
    ),
    "BertModel": _bert("", _affine("pooler.dense")),
    "BertForSequenceClassification": _bert("bert.", _affine("classifier"), optional=_affine("bert.pooler.dense")),
    "RobertaForSequenceClassification": _bert("roberta.", _affine("classifier.dense", "classifier.out_proj")),
    "DistilBertForSequenceClassification": Layout(
        "distilbert.transformer.layer.{}.",
        _DISTILBERT_LAYER,
        (
            "distilbert.embeddings.word_embeddings.weight",
            "distilbert.embeddings.position_embeddings.weight",
            *_affine("distilbert.embeddings.LayerNorm", "pre_classifier", "classifier"),
        ),
    ),
}
"""Architecture name (``architectures`` in config.json) -> its tensors."""
