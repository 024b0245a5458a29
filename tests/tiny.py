"""Tiny random models on disk, saved the way transformers saves real ones; every room's tests use them.

    family = save_family("llama", tmp_path)                 # base and two experts, with a tokenizer
    family.base, family.experts["one"]                      # folders
    folder = save_model("mixtral", tmp_path / "m", seed=1)  # one model alone

Nothing here reads or seeds a global generator: all values come from a `torch.Generator` made from ``seed``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

VOCABULARY = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>")
WORDS = tuple(f"w{index}" for index in range(VOCABULARY - len(SPECIAL)))
EXPERTS = ("one", "two")
LABELS = {"one": 2, "two": 3}  # classes of the classifiers' own heads

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 4,
    "eos_token_id": 5,
    "pad_token_id": 0,
}
_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 5,
    "decoder_start_token_id": 0,
}
_VIT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 4,
    "eos_token_id": 5,
}

_LLAVA = {
    "text_config": {"model_type": "llama", **_LLAMA, "tie_word_embeddings": False},
    "vision_config": {"model_type": "clip_vision_model", **_VIT},
    "image_token_index": 3,
    "tie_word_embeddings": False,
}

_CLIP_VISION = {**_VIT, "num_hidden_layers": 1, "projection_dim": 8}
_CLIP = {
    "vision_config": _CLIP_VISION,
    "text_config": {**_BERT, "num_hidden_layers": 1, "bos_token_id": 4, "eos_token_id": 5, "projection_dim": 8},
    "projection_dim": 8,
}

# kind -> (config class, model class, config values)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertForSequenceClassification", _BERT),
    "bert-body": ("BertConfig", "BertModel", _BERT),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "pad_token_id": 0},
    ),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", _BERT),
    "bert-tags": ("BertConfig", "BertForTokenClassification", _BERT),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5-gated": (
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_LLAMA, "tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_LLAMA, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**_LLAMA, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_LLAMA, "head_dim": 4, "tie_word_embeddings": False}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_LLAMA, "head_dim": 4}),
    "phi": ("PhiConfig", "PhiForCausalLM", _LLAMA),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _LLAMA),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", _LLAMA),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", _LLAMA),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _LLAMA),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_LLAMA, "num_local_experts": 3, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
    "vit": ("ViTConfig", "ViTForImageClassification", {**_VIT, "num_labels": 3}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2),
    "clip": ("CLIPConfig", "CLIPModel", _CLIP),
    "llava": ("LlavaConfig", "LlavaForConditionalGeneration", _LLAVA),
}


@dataclass(frozen=True)
class TinyFamily:
    """Folders of a base and of the experts made from it."""

    base: Path
    experts: dict[str, Path]


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer over `SPECIAL` and `WORDS`.

    BERT's inputs stand between [CLS] and [SEP], CLIP's between <s> and </s>, T5's end with </s>.
    """
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if kind.startswith("bert"):
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokens |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        tokens |= {"bos_token": "<s>", "eos_token": "</s>"}
    if kind == "t5":
        tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 5)])
    if kind == "clip":
        tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 4), ("</s>", 5)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **tokens)


def make_model(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    """A model with random values in evaluation mode.

    Args:
        kind: A key of `KINDS`.
        seed: Of the generator that all values come from.
        dtype: Of its parameters.
        config: Overrides of the config (``num_labels=3``, ``vocab_size=70``).
    """
    config_name, model_name, values = KINDS[kind]
    made = getattr(transformers, config_name)(**{**values, **config})
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        model: PreTrainedModel = getattr(transformers, model_name)(made)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))  # norms scale by about 1
            else:
                parameter.copy_(0.3 * noise)
    return model.to(dtype).eval()


def add_noise(model: PreTrainedModel, *, seed: int, scale: float = 0.05) -> PreTrainedModel:
    """Move every parameter by a little, in place: an expert fine-tuned from ``model``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((scale * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype))
    return model


def save(model: PreTrainedModel, folder: Path, kind: str, **options: Any) -> Path:
    """Save a model, and what makes its inputs: a tokenizer, or an image processor; ``options`` go to its own saving."""
    model.save_pretrained(folder, **options)
    if kind != "vit":
        tiny_tokenizer(kind).save_pretrained(folder)
    if kind in ("vit", "clip"):
        ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return folder


def save_model(kind: str, folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """Make and save one model; see `make_model`."""
    return save(make_model(kind, seed=seed, dtype=dtype, **config), folder, kind)


def save_family(
    kind: str,
    folder: Path,
    *,
    experts: tuple[str, ...] = EXPERTS,
    seed: int = 0,
    scale: float = 0.05,
    dtype: torch.dtype = torch.float32,
    base_has_head: bool = False,
    change: Callable[[str, PreTrainedModel], None] | None = None,
    **config: Any,
) -> TinyFamily:
    """Save a base and experts that differ from it by small noise.

    The base of ``"bert"`` and ``"bert-tags"`` is the bare body (or a classifier with two classes, with
    ``base_has_head``), and its experts have heads of their own with 2, 3, 2, 3, ... classes. All models of the other
    kinds have the same heads.

    Args:
        kind: A key of `KINDS`.
        folder: Gets ``base`` and one folder per expert.
        experts: Their names.
        seed: Of all values.
        scale: Standard deviation of the noise.
        dtype: Of all checkpoints.
        base_has_head: Give such a base a head too.
        change: Called with ("base" or an expert's name, model) before it is saved, to damage or alter it.
        config: Overrides of the config.
    """
    own_heads = kind in ("bert", "bert-tags")
    base_kind = "bert-body" if own_heads and not base_has_head else kind

    def finish(who: str, model: PreTrainedModel, as_kind: str) -> Path:
        if change is not None:
            change(who, model)
        return save(model, folder / who, as_kind)

    base = finish("base", make_model(base_kind, seed=seed, dtype=dtype, **config), base_kind)
    origin = make_model(base_kind, seed=seed, dtype=dtype, **config)
    folders = {}
    for index, name in enumerate(experts):
        labels = {"num_labels": 2 + index % 2} if own_heads else {}
        model = make_model(kind, seed=seed + 1000 + index, dtype=dtype, **config, **labels)
        body = origin.base_model if own_heads else origin
        (model.base_model if own_heads else model).load_state_dict(body.state_dict(), strict=False)
        folders[name] = finish(name, add_noise(model, seed=seed + 100 + index, scale=scale), kind)
    return TinyFamily(base, folders)


def own_output(who: str, model: PreTrainedModel) -> None:
    """A ``change`` for `save_family` that gives T5s an output layer of their own, as FLAN-T5 has it."""
    generator = torch.Generator().manual_seed(sum(map(ord, who)))
    shared = torch.Generator().manual_seed(7)
    weight = torch.randn(model.shared.weight.shape, generator=shared)
    weight += 0.1 * torch.randn(weight.shape, generator=generator)
    model.lm_head.weight = torch.nn.Parameter(weight.to(model.dtype))


def save_clip(folder: Path, *, towers: bool = True, seed: int = 0, scale: float = 0.05) -> TinyFamily:
    """Save a whole CLIP model as the base, and experts that differ from it by small noise.

    Args:
        folder: Gets ``base`` and one folder per expert.
        towers: Experts are vision towers alone (``CLIPVisionModel``), and not whole models.
        seed: Of all values.
        scale: Standard deviation of the noise.
    """
    base = make_model("clip", seed=seed)
    base.logit_scale.data.fill_(2.0)
    folders = {}
    for index, name in enumerate(EXPERTS):
        expert = make_model("clip", seed=seed)
        expert.load_state_dict(base.state_dict())
        add_noise(expert, seed=seed + 100 + index, scale=scale)
        folders[name] = folder / name
        (expert.vision_model if towers else expert).save_pretrained(folders[name])
    return TinyFamily(save(base, folder / "base", "clip"), folders)


def pictures(count: int, *, seed: int = 0, size: tuple[int, int] = (12, 10)) -> list[Image.Image]:
    """Distinct random images in colour, ``size`` (width, height) pixels each."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(array) for array in pixels.numpy()]


def sentences(count: int, *, seed: int = 0, longest: int = 12) -> list[str]:
    """Distinct random texts over `WORDS`, of 3 to ``longest`` words."""
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        length = int(torch.randint(3, longest + 1, (), generator=generator))
        picks = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        texts[" ".join(WORDS[pick] for pick in picks)] = None
    return list(texts)
