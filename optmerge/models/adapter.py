"""A model with a LoRA adapter on it, as one checkpoint: every tensor merged densely when it is read.

W + scaling * B @ A in fp32, cast once to the base's dtype; the result is what peft's ``merge_and_unload`` gives.
Whole tensors that the adapter carries (``modules_to_save``, trained biases) replace or join the base's.

    checkpoint = AdapterCheckpoint(base, Path("zoo/adapter"), reference="zoo/base+zoo/adapter")
    checkpoint.read("encoder.layer.0.attention.self.query.weight")
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optmerge.errors import MissingExtraError, ModelError
from optmerge.models.architecture import ModelKind, model_on_meta
from optmerge.models.cache import file_sha256
from optmerge.models.checkpoint import Checkpoint, config_facts, list_names
from optmerge.models.mapped import PickleFile, SafetensorsFile, TensorInfo, WeightFile
from optmerge.models.mapping import CheckpointMap, checkpoint_map

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+?)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)"
)
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal")  # of A and B only; the other schemes change the base's weights too
_TASK_KINDS: dict[str, ModelKind] = {"CAUSAL_LM": "causal-lm", "SEQ_CLS": "sequence-classification"}
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
    "target_parameters": "LoRA on fused parameters (target_parameters)",
    "trainable_token_indices": "LoRA with trainable tokens",
}


@dataclass(frozen=True, slots=True)
class LowRank:
    """One tensor's update: scaling * B @ A, transposed where the tensor is stored the other way round.

    Attributes:
        a: Name of A [rank, in] in the adapter file.
        b: Name of B [out, rank].
        scaling: alpha / rank, or alpha / sqrt(rank).
        transposed: The tensor is [in, out] (embeddings, Conv1D).
    """

    a: str
    b: str
    scaling: float
    transposed: bool


class AdapterCheckpoint:
    """A base checkpoint with one adapter merged in, under the base's names on disk.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: The adapter is of another kind than plain LoRA, damaged, or does not fit the base.
    """

    def __init__(
        self,
        base: Checkpoint,
        adapter_folder: Path,
        *,
        reference: str,
        revision: str | None = None,
        allow_pickle: bool = False,
    ) -> None:
        self.reference = reference
        self.revision = revision
        self.base = base
        self.folder = base.folder
        self.adapter_folder = adapter_folder
        self._peft = _read_peft_config(adapter_folder)
        self._file = _open_adapter(adapter_folder, allow_pickle=allow_pickle)
        self._map: CheckpointMap | None = None
        self._low_rank: dict[str, LowRank] = {}  # disk name -> its update
        self._saved: dict[str, str] = {}  # disk name -> name in the adapter file
        self._sort_tensors()
        self.tensors: Mapping[str, TensorInfo] = self._describe()

    def read(self, name: str) -> torch.Tensor:
        """A merged tensor; one that the adapter leaves alone is a view of the base's mapped file."""
        base = self._file.read(self._saved[name]) if name in self._saved else self.base.read(name)
        update = self._low_rank.get(name)
        if update is None:
            return base
        wide = torch.promote_types(base.dtype, torch.float32)
        delta = self._file.read(update.b).to(wide) @ self._file.read(update.a).to(wide)
        delta = (delta.T if update.transposed else delta) * update.scaling
        return (base.to(wide) + delta).to(base.dtype)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The base's weight files and the adapter's."""
        return (*self.base.sources, self._file.path)

    def sha256(self) -> str:
        """A hash of the base, of the adapter's weights and of its config."""
        facts = [
            self.base.sha256(),
            file_sha256(self._file.path),
            _meaning(config_facts(self.adapter_folder / "adapter_config.json")),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def config(self) -> PreTrainedConfig:
        """The base's config, made to describe the adapter's class of model and its head."""
        config = self.base.config()
        kind = _TASK_KINDS.get(str(self._peft.task_type or ""))
        named = (self._peft.auto_mapping or {}).get("base_model_class")
        if kind is not None:
            named = _class_name(config, kind) or named
        if named:
            config.architectures = [named]
        saved = [self._file.tensors[key] for key in self._saved.values() if not key.endswith(".base_layer.weight")]
        heads = [info.shape[0] for info in saved if len(info.shape) == 2]
        if kind == "sequence-classification" and heads and min(heads) != config.num_labels:
            config.num_labels = min(heads)  # a head's last matrix has one row per label, its others more
        return config

    def _sort_tensors(self) -> None:
        """Tell the adapter file's tensors apart: factors, and whole tensors."""
        factors: dict[str, dict[str, str]] = {}
        for key in self._file.tensors:
            match = _KEY.fullmatch(key)
            if match:
                factors.setdefault(match["module"], {})[match["part"]] = key
            elif key.startswith("base_model.model.") and "lora_" not in key:
                name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
                self._saved[self._disk_name(name, new=True)] = key
            else:
                raise ModelError(
                    f"The adapter {self.adapter_folder} has a tensor {key}, which plain LoRA does not have; "
                    "adapters of other kinds cannot be merged here. Merge it with peft's merge_and_unload first."
                )
        for module, parts in factors.items():
            self._add_update(module, parts)

    def _add_update(self, module: str, parts: dict[str, str]) -> None:
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        wanted = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        lacking = [part for part in wanted if part not in parts]
        if lacking:
            raise ModelError(
                f"The adapter {self.adapter_folder} has half an update of {module}: {lacking[0]} is missing. "
                "Save or download it again."
            )
        a, b = (self._file.tensors[parts[part]] for part in wanted)
        disk = self._disk_name(f"{module}.weight", new=False)
        shape = self._info(disk).shape
        update = (b.shape[0], a.shape[-1]) if len(a.shape) == len(b.shape) == 2 else ()
        if not update or a.shape[0] != b.shape[1] or shape not in (update, update[::-1]):
            raise ModelError(
                f"The adapter {self.adapter_folder} does not fit {self.base.reference}: its factors for {module} are "
                f"{list(b.shape)} and {list(a.shape)}, and the tensor {disk} is {list(shape)}. "
                "It was made for another model, or for layers that are not linear."
            )
        square = update == update[::-1]
        transposed = (embedding or bool(self._peft.fan_in_fan_out)) if square else shape != update
        rank = a.shape[0]
        alpha = _by_pattern(self._peft.alpha_pattern, module, self._peft.lora_alpha)
        scaling = alpha / (math.sqrt(rank) if self._peft.use_rslora else rank)
        self._low_rank[disk] = LowRank(a.name, b.name, scaling, transposed)

    def _info(self, disk: str) -> TensorInfo:
        return self._file.tensors[self._saved[disk]] if disk in self._saved else self.base.tensors[disk]

    def _describe(self) -> dict[str, TensorInfo]:
        whole = {disk: replace(self._file.tensors[key], name=disk) for disk, key in self._saved.items()}
        return {**{name: whole.get(name, info) for name, info in self.base.tensors.items()}, **whole}

    def _disk_name(self, name: str, *, new: bool) -> str:
        """The base's disk tensor for a module's tensor; with ``new`` it may be one that the base lacks."""
        if name in self.base.tensors:
            return name
        short = name.partition(".")[2]
        same = [short] if short in self.base.tensors else []
        same = same or [disk for disk in self.base.tensors if disk.partition(".")[2] == name]
        if len(same) == 1:  # the body's prefix is there on one side only
            return same[0]
        if self._map is None:
            config = self.config()
            kind = _TASK_KINDS.get(str(self._peft.task_type or ""), "other")
            self._map = checkpoint_map(model_on_meta(config, kind), self.base)
        pieces = [piece for piece in self._map.pieces if piece.parameter == name]
        if pieces and pieces[0].view is None and not pieces[0].index:
            return pieces[0].disk
        if new and not pieces:
            return name
        fused = list_names(piece.disk for piece in pieces)
        trouble = f"is stored as {fused} that are fused on load" if pieces else "is unknown"
        raise ModelError(
            f"The adapter {self.adapter_folder} changes {name}, which {trouble} in {self.base.reference}. "
            "Check that it was made for this model, or merge it with peft's merge_and_unload first."
        )


def _read_peft_config(folder: Path) -> Any:
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


def _refusal(folder: Path, what: str) -> str:
    return (
        f"The adapter {folder} is {what}; only plain LoRA is merged here. "
        "Merge it with peft's merge_and_unload, save the model, and name its folder instead."
    )


def _open_adapter(folder: Path, *, allow_pickle: bool) -> WeightFile:
    pickled = folder / "adapter_model.bin"
    if not (folder / "adapter_model.safetensors").exists() and pickled.exists():
        if allow_pickle:
            return PickleFile(pickled)
        raise ModelError(
            f"The adapter {folder} has only pickled weights ({pickled.name}), and reading such a file can run code "
            "that is hidden in it. Save it again with a current peft, or pass --allow-pickle if you trust it."
        )
    return SafetensorsFile(folder / "adapter_model.safetensors")


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """As peft does: the first pattern that matches the end of the module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _class_name(config: PreTrainedConfig, kind: ModelKind) -> str | None:
    from transformers.models.auto import modeling_auto

    names = {
        "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "sequence-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }[kind]
    name = names.get(config.model_type)
    return name if isinstance(name, str) else None


def _meaning(facts: Any) -> Any:
    return {key: value for key, value in facts.items() if key not in _COSMETIC}
