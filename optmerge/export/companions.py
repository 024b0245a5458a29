"""The files that stand beside a checkpoint's tensors: config.json, the generation config, the tokenizer's files.

They are copied from their source as they are; config.json alone is changed, in its dtype and (for a body) architecture.

    write_config(family.base, folder, dtype="bfloat16")
    copy_tokenizer(family.experts["chat"], family.base, folder)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optmerge.errors import ModelError

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "bpe.codes",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",  # of models whose inputs are not text
    "processor_config.json",
)
TEMPLATE_FOLDER = "additional_chat_templates"
_NOT_OURS = ("_name_or_path", "torch_dtype", "transformers_version", "quantization_config")


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint's config.json as it is on disk.

    Raises:
        ModelError: There is none, or it is not JSON.
    """
    path = checkpoint.folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{checkpoint.reference} has no {CONFIG}, which the exported checkpoint needs.") from None
    except ValueError as problem:
        raise ModelError(f"{path} is not valid JSON: {problem}.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a {type(config).__name__}; expected a mapping.")
    return config


def write_config(checkpoint: Checkpoint, folder: Path, *, dtype: str, architecture: str | None = None) -> None:
    """Copy config.json with another dtype, and another architecture when one is given."""
    config = read_config(checkpoint)
    for key in _NOT_OURS:
        config.pop(key, None)
    config["dtype"] = dtype
    if architecture:
        config["architectures"] = [architecture]
        for key in ("id2label", "label2id", "num_labels", "problem_type"):  # of a head that a body does not have
            config.pop(key, None)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_tokenizer(source: Checkpoint, fallback: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat templates and generation config of ``source``; what it lacks entirely, of ``fallback``."""
    owner = source if any((source.folder / name).exists() for name in TOKENIZER_FILES) else fallback
    for name in TOKENIZER_FILES:
        if (owner.folder / name).is_file():
            shutil.copyfile(owner.folder / name, folder / name)
    if (owner.folder / TEMPLATE_FOLDER).is_dir():
        shutil.copytree(owner.folder / TEMPLATE_FOLDER, folder / TEMPLATE_FOLDER)
    for owner in (source, fallback):
        if (owner.folder / GENERATION).is_file():
            shutil.copyfile(owner.folder / GENERATION, folder / GENERATION)
            break


def auto_model_class(checkpoint: Checkpoint) -> str | None:
    """The class that ``AutoModel`` makes of this checkpoint's model type; None when transformers knows none."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES.get(read_config(checkpoint).get("model_type", ""))
    first = name[0] if isinstance(name, tuple | list) else name
    return str(first) if first else None
