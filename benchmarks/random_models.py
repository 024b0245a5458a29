"""Checkpoints with random weights, made on the spot: a base, experts near it, LoRA adapters, and calibration texts.

    family = write_family(work, "llama-240m", experts=3, dtype=torch.bfloat16)
    family.base, family.experts["e0"]             # folders
    write_adapter(work / "a0", family.base, "llama-240m", rank=16, seed=1)
    write_texts(work / "texts.jsonl", count=32, words=8, seed=0)

Values are windows of one block of normal numbers at an offset that differs from tensor to tensor, so a model of
billions of parameters takes seconds; the block's length is prime, so no two rows of a matrix are alike. An expert is
the base plus noise of a twentieth of its spread. Shards are written one after the other: memory stays below two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BLOCK = 4_194_319  # a prime just above 2**22
SPREAD = 0.02  # standard deviation of a matrix
NOISE = 0.05  # an expert's distance from the base, in spreads
SHARD = 1 << 30  # bytes; a tensor that is larger is a shard of its own
WORDS = tuple(f"w{index}" for index in range(1000))
_SPECIAL = ("[PAD]", "[UNK]", "<s>", "</s>")

_Kind = tuple[str, str, dict[str, Any]]  # config class, model class, values of the config


def _llama(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, shared: int, *, tied: bool) -> _Kind:
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "tie_word_embeddings": tied,
    }
    rest = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 2048}
    return "LlamaConfig", "LlamaForCausalLM", sizes | rest


def _clip(hidden: int, inner: int, layers: int, heads: int, image: int) -> _Kind:
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": 32,
    }
    return "CLIPVisionConfig", "CLIPVisionModel", sizes


MODELS = {
    "llama-tiny": _llama(2048, 128, 256, 2, 4, 2, tied=False),
    "llama-110m": _llama(32000, 768, 2048, 12, 12, 12, tied=True),
    "llama-240m": _llama(32000, 1024, 2816, 15, 16, 8, tied=False),
    "llama-1b": _llama(128256, 2048, 8192, 16, 32, 8, tied=True),
    "llama-3b": _llama(128256, 3072, 8192, 28, 24, 8, tied=True),
    "clip-tiny": _clip(64, 128, 2, 2, 64),
    "clip-b32": _clip(768, 3072, 12, 12, 224),
}


@dataclass(frozen=True, slots=True)
class RandomFamily:
    """Folders of a base and of its experts, and how large one of them is.

    Attributes:
        base: The base's folder.
        experts: Name ("e0", "e1", ...) -> folder.
        parameters: Numbers in one model, tied ones once.
        nbytes: Bytes of one model's tensors.
    """

    base: Path
    experts: dict[str, Path]
    parameters: int
    nbytes: int


def write_family(work: Path, model: str, *, experts: int, dtype: torch.dtype) -> RandomFamily:
    """Write a base and experts below ``work``; folders that are there already are taken as they are.

    Args:
        work: Where folders named after model, dtype and number are made.
        model: A key of `MODELS`.
        experts: How many.
        dtype: Of all tensors.
    """
    stem = f"{model}-{str(dtype).removeprefix('torch.')}"
    shapes = shapes_of(model)
    count = sum(_numel(shape) for shape in shapes.values())
    folders = {f"e{index}": work / f"{stem}-e{index}" for index in range(experts)}
    base = work / f"{stem}-base"
    write_checkpoint(base, model, dtype=dtype)
    for index, folder in enumerate(folders.values()):
        write_checkpoint(folder, model, dtype=dtype, expert=index)
    return RandomFamily(base, folders, count, count * dtype.itemsize)


def write_checkpoint(folder: Path, model: str, *, dtype: torch.dtype, expert: int | None = None) -> None:
    """Write one model with config, tokenizer (for a language model) and sharded safetensors.

    Args:
        folder: Made; nothing is done when it holds a config already, which is written last.
        model: A key of `MODELS`.
        dtype: Of all tensors.
        expert: None for the base; experts of different numbers differ from the base in different ways.
    """
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shapes = shapes_of(model)
    shards = list(_shards(shapes, dtype.itemsize))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: random_tensor(name, shapes[name], dtype=dtype, expert=expert) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_numel(shape) for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if model.startswith("llama"):
        tokenizer().save_pretrained(folder)
    config = _empty(model).config
    config.dtype = dtype
    config.architectures = [MODELS[model][1]]
    config.save_pretrained(folder)


@torch.no_grad()
def random_tensor(name: str, shape: tuple[int, ...], *, dtype: torch.dtype, expert: int | None = None) -> torch.Tensor:
    """The values of one tensor: of the base, or of an expert; a function of its arguments alone.

    Vectors that scale (norms' weights) are around one, other vectors around zero.
    """
    count = _numel(shape)
    vector = len(shape) == 1
    value = torch.empty(count, dtype=torch.float32)
    _fill(value, f"base {name}", 0.1 if vector else SPREAD)
    if vector and name.endswith("weight"):
        value.add_(1.0)
    if expert is not None:
        noise = torch.empty_like(value)
        _fill(noise, f"expert {expert} {name}", NOISE * (0.1 if vector else SPREAD))
        value = value.to(dtype).float().add_(noise)
    return value.to(dtype).view(shape)


def shapes_of(model: str) -> dict[str, tuple[int, ...]]:
    """Tensor name on disk -> shape, tied ones once."""
    return {name: tuple(parameter.shape) for name, parameter in _empty(model).named_parameters()}


def write_adapter(folder: Path, base: Path, model: str, *, rank: int, seed: int) -> None:
    """Write a LoRA adapter in PEFT's format over all linear layers of a Llama, with B not zero.

    Args:
        folder: Made.
        base: The base's folder.
        model: A key of `MODELS`.
        rank: Of every factor.
        seed: Adapters of different seeds differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    targets = set()
    for name, shape in shapes_of(model).items():
        if len(shape) != 2 or not name.endswith("_proj.weight"):
            continue
        module = name.removesuffix(".weight")
        targets.add(module.rpartition(".")[2])
        for factor, size in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
            value = torch.empty(_numel(size), dtype=torch.float32)
            _fill(value, f"adapter {seed} {module} {factor}", SPREAD)
            tensors[f"base_model.model.{module}.lora_{factor}.weight"] = value.view(size)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(targets),
        "fan_in_fan_out": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, over `WORDS`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(WordLevel({word: index for index, word in enumerate((*_SPECIAL, *WORDS))}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=2048,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="<s>",
        eos_token="</s>",
    )


def write_texts(path: Path, *, count: int, words: int, seed: int) -> None:
    """Write random texts of a number of words, one ``{"text": ...}`` a line."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (count, words), generator=generator).tolist()
    lines = [json.dumps({"text": " ".join(WORDS[pick] for pick in row)}) + "\n" for row in picks]
    path.write_text("".join(lines), encoding="utf-8")


def _fill(out: torch.Tensor, key: str, scale: float) -> None:
    """Fill a flat tensor with normal numbers times ``scale``, from a place in the block that the key chooses."""
    block = _block()
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % BLOCK
    done = 0
    while done < out.numel():
        part = min(BLOCK - place, out.numel() - done)
        torch.mul(block[place : place + part], scale, out=out[done : done + part])
        done, place = done + part, 0


@cache
def _block() -> torch.Tensor:
    return torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))


@cache
def _empty(model: str) -> PreTrainedModel:
    import transformers

    config_class, model_class, values = MODELS[model]
    with torch.device("meta"):
        made: PreTrainedModel = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    return made


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        nbytes = _numel(shape) * itemsize
        if names and size + nbytes > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
