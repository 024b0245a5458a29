"""The files that stand beside a checkpoint's tensors: config.json, the generation config, the tokenizer's files.

They are what their source has; config.json alone is changed, in its dtype and (for a body) architecture.

    files = config_file(family.base, dtype="bfloat16") | tokenizer_files(family.experts["chat"], family.base)
    files["config.json"]                    # bytes
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from optmerge.errors import ModelError
from optmerge.models.aligned import AlignedCheckpoint

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


def config_file(checkpoint: Checkpoint, *, dtype: str, architecture: str | None = None) -> dict[str, bytes]:
    """config.json with another dtype, and another architecture when one is given.

    Returns:
        File name -> content.
    """
    config = read_config(checkpoint)
    if isinstance(checkpoint, AlignedCheckpoint):
        config = checkpoint.described(config, read_config(checkpoint.base))
    for key in _NOT_OURS:
        config.pop(key, None)
    config["dtype"] = dtype
    if architecture:
        config["architectures"] = [architecture]
        for key in ("id2label", "label2id", "num_labels", "problem_type"):  # of a head that a body does not have
            config.pop(key, None)
    return {CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()}


def tokenizer_files(source: Checkpoint, fallback: Checkpoint) -> dict[str, bytes]:
    """Tokenizer, chat templates and generation config of ``source``; what it lacks entirely, of ``fallback``.

    Returns:
        Path below the checkpoint's folder -> content.
    """
    owner = source if any((source.folder / name).exists() for name in TOKENIZER_FILES) else fallback
    found = [owner.folder / name for name in TOKENIZER_FILES]
    found += sorted(path for path in (owner.folder / TEMPLATE_FOLDER).rglob("*"))
    files = {str(path.relative_to(owner.folder)): path.read_bytes() for path in found if path.is_file()}
    for checkpoint in (source, fallback):
        if (checkpoint.folder / GENERATION).is_file():
            return files | {GENERATION: (checkpoint.folder / GENERATION).read_bytes()}
    return files


def auto_model_class(checkpoint: Checkpoint) -> str | None:
    """The class that ``AutoModel`` makes of this checkpoint's model type; None when transformers knows none."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    name = MODEL_MAPPING_NAMES.get(read_config(checkpoint).get("model_type", ""))
    first = name[0] if isinstance(name, tuple | list) else name
    return str(first) if first else None
