"""What a PEFT adapter's folder says about itself: its config and its file of tensors, or why they are refused.

Plain LoRA is taken, in all its shapes; what changes the meaning of the factors is refused by the name that people
know it by.

    config = read_peft_config(Path("zoo/adapter"))
    scaling_of(config, "model.layers.0.self_attn.q_proj", rank=16)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optmerge.errors import MissingExtraError, ModelError
from optmerge.models.architecture import ModelKind
from optmerge.models.checkpoint import config_facts
from optmerge.models.mapped import PickleFile, SafetensorsFile, WeightFile

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")  # of A and B only; the other schemes change the base's weights too
_TASK_KINDS: dict[str, ModelKind] = {
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}
_COSMETIC = ("base_model_name_or_path", "peft_version", "revision")
_VARIANTS = {  # config field -> what a person calls it; each changes what the factors mean
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA",
    "arrow_config": "Arrow",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "lora_bias": "LoRA with trained biases of B (lora_bias)",
    "layer_replication": "LoRA with layer replication",
    "trainable_token_indices": "LoRA with trainable tokens",
}


def read_peft_config(folder: Path) -> Any:
    """The adapter's ``LoraConfig``, as peft reads it.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: It is missing, malformed, or of another kind than plain LoRA.
    """
    try:
        from peft import PeftConfig
    except ImportError:
        raise MissingExtraError(
            f"The adapter {folder} needs peft, which is not installed. Run: pip install 'optmerge[peft]'"
        ) from None
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} is not an adapter: it has no adapter_config.json. Write model+adapter, the adapter after the "
            "plus."
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind = str(stored.get("peft_type"))
        config = PeftConfig.from_pretrained(str(folder)) if kind == "LORA" else None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as problem:
        raise ModelError(f"{path} cannot be read by peft: {' '.join(str(problem).split())}") from None
    if config is None:
        raise ModelError(_refusal(folder, f"of the type {kind}"))
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start not in _PLAIN_STARTS:
        raise ModelError(_refusal(folder, f"LoRA that was started with {start}, which also changes the base"))
    for field, name in _VARIANTS.items():
        if getattr(config, field, None):
            raise ModelError(_refusal(folder, name))
    return config


def open_adapter_file(folder: Path, *, allow_pickle: bool) -> WeightFile:
    """The adapter's tensors.

    Raises:
        ModelError: The file is missing or damaged, or pickled without permission.
    """
    pickled = folder / "adapter_model.bin"
    if not (folder / "adapter_model.safetensors").exists() and pickled.exists():
        if allow_pickle:
            return PickleFile(pickled)
        raise ModelError(
            f"The adapter {folder} has only pickled weights ({pickled.name}), and reading such a file can run code "
            "that is hidden in it. Save it again with a current peft, or pass --allow-pickle if you trust it."
        )
    return SafetensorsFile(folder / "adapter_model.safetensors")


def scaling_of(peft: Any, target: str, *, rank: int) -> float:
    """What multiplies B @ A: alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023, equation 4).

    Args:
        peft: The adapter's config.
        target: Name of the module, or of the parameter when it is one of ``target_parameters``.
        rank: Of its factors.
    """
    alpha = _by_pattern(peft.alpha_pattern, target, peft.lora_alpha)
    return float(alpha / (math.sqrt(rank) if peft.use_rslora else rank))


def adapted_kind(peft: Any) -> ModelKind:
    """The kind of model that the adapter was trained on, going by its task type."""
    return _TASK_KINDS.get(str(peft.task_type or ""), "other")


def adapted_class(peft: Any, config: PreTrainedConfig) -> str | None:
    """The name of the class that the adapter was trained on; None when only the base's config can tell."""
    from transformers.models.auto import modeling_auto

    named = (peft.auto_mapping or {}).get("base_model_class")
    tables = {
        "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "seq2seq-lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }
    known = tables.get(adapted_kind(peft), {}).get(config.model_type)
    return known if isinstance(known, str) else named


def adapter_facts(folder: Path) -> Any:
    """What of the adapter's config changes the merged model; for its hash."""
    facts = config_facts(folder / "adapter_config.json")
    return {key: value for key, value in facts.items() if key not in _COSMETIC}


def _refusal(folder: Path, what: str) -> str:
    return (
        f"The adapter {folder} is {what}; only plain LoRA is merged here. "
        "Merge it with peft's merge_and_unload, save the model, and name its folder instead."
    )


def _by_pattern(patterns: Mapping[str, float] | None, target: str, default: float) -> float:
    """As peft does: the first pattern that matches the end of the target's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", target):
            return value
    return default
