"""Checkpoints: a model's tensors on disk, known by their headers and read one by one.

Opening costs a few kilobytes per file, whatever the model's size.

checkpoint = open_checkpoint("zoo/base")                 # folder, hub id[@revision], or model+adapter
checkpoint.tensors["model.norm.weight"].shape            # from the header; no weight is read
checkpoint.read("model.norm.weight")                     # mapped; never write to it
checkpoint.sha256()                                      # of the content, remembered in the cache
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from optmerge.errors import ModelError
from optmerge.models.cache import file_sha256
from optmerge.models.mapped import PickleFile, SafetensorsFile, TensorInfo, WeightFile
from optmerge.models.reference import ModelReference, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["Checkpoint", "FolderCheckpoint", "TensorInfo", "open_checkpoint"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
_PICKLE_INDEX = "pytorch_model.bin.index.json"
_COSMETIC = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")
_OTHER_FORMATS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ckpt", "*.pt", "*.pth", "*.bin", "*.safetensors")


class Checkpoint(Protocol):
    """A model on disk.

    Attributes:
        reference: What the user wrote, with folders made absolute.
        revision: Commit on the Hub, None for folders.
        folder: Where config.json and the tokenizer are.
        tensors: Every tensor by its name on disk, in the order of the files.
    """

    reference: str
    revision: str | None
    folder: Path
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, a view of the mapped file where possible; never write to it."""

    def sha256(self) -> str:
        """A hash of the content: all weights, and what of the config changes the model."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """The weight files."""

    def config(self) -> PreTrainedConfig:
        """The model's config, a new object at each call."""


class FolderCheckpoint:
    """A checkpoint in a folder: safetensors or allowed pickles, in one file or sharded.

    Raises:
        ModelError: Weights are missing, truncated, damaged, or in a format that is not read.
    """

    def __init__(
        self, folder: Path, *, reference: str, revision: str | None = None, allow_pickle: bool = False
    ) -> None:
        self.reference = reference
        self.revision = revision
        self.folder = folder
        self._file_of = _open_files(folder, reference, allow_pickle=allow_pickle)
        self.tensors: Mapping[str, TensorInfo] = {name: file.tensors[name] for name, file in self._file_of.items()}
        self._sha256: str | None = None
        self._digests: dict[Path, str] = {}

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """The weight files, opened."""
        return tuple(dict.fromkeys(self._file_of.values()))

    def adopt(self, digests: Mapping[Path, str]) -> None:
        """Take hashes that were made of weight files since they were opened, so that they are not made again."""
        self._digests.update(digests)

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, a view of the mapped file where possible; never write to it."""
        return self._file_of[name].read(name)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The weight files."""
        return tuple(dict.fromkeys(file.path for file in self._file_of.values()))

    def sha256(self) -> str:
        """A hash of the weight files' hashes and of what of the config changes the model."""
        if self._sha256 is None:
            hashes = sorted(self._digests.get(path) or file_sha256(path) for path in self.sources)
            facts = [hashes, config_facts(self.folder / "config.json")]
            self._sha256 = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._sha256

    def config(self) -> PreTrainedConfig:
        """The model's config.

        Raises:
            ModelError: It is missing, malformed, or of a model that transformers does not know.
        """
        return load_config(self.folder, self.reference)


def open_checkpoint(reference: str, *, relative_to: Path = Path(), allow_pickle: bool = False) -> Checkpoint:
    """Open a model by its reference; headers only.

    Args:
        reference: Folder, hub id[@revision], or model+adapter.
        relative_to: What relative folders are relative to.
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors.

    Raises:
        ModelError: It cannot be found or read; the message says which file and why.
        MissingExtraError: It has an adapter, and peft is not installed.
    """
    parsed = ModelReference.parse(reference, relative_to=relative_to)
    found = resolve(parsed, allow_pickle=allow_pickle)
    if found.adapter_folder is None:
        return FolderCheckpoint(found.folder, reference=parsed.text, revision=found.revision, allow_pickle=allow_pickle)
    from optmerge.models.adapter import AdapterCheckpoint

    base = FolderCheckpoint(found.folder, reference=parsed.text.rpartition("+")[0], allow_pickle=allow_pickle)
    return AdapterCheckpoint(
        base, found.adapter_folder, reference=parsed.text, revision=found.revision, allow_pickle=allow_pickle
    )


def load_config(folder: Path, reference: str) -> PreTrainedConfig:
    """Read a folder's config.json through transformers, without running code that comes with it.

    Raises:
        ModelError: It is missing, malformed, or of a model that transformers does not know.
    """
    from transformers import AutoConfig, PreTrainedConfig

    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{reference} has no config.json in {folder}, so its architecture is unknown.")
    stored = _read_json(path)
    if "auto_map" in stored and not stored.get("model_type"):
        raise ModelError(
            f"{reference} needs code of its own ({path} has auto_map and no model_type), which is not run. "
            "Use a model that transformers knows."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as problem:
        first = " ".join(str(problem).split())[:300]
        raise ModelError(
            f"transformers cannot read {path} (model_type {stored.get('model_type')!r}): {first} "
            "A model that needs code of its own, or a newer transformers, is not supported."
        ) from None
    assert isinstance(config, PreTrainedConfig)
    return config


def config_facts(path: Path) -> Any:
    """What a JSON config says about the model, without what says where it comes from and how it is stored."""
    if not path.is_file():
        return None
    return {key: value for key, value in _read_json(path).items() if key not in _COSMETIC}


def list_names(names: Iterable[str], *, most: int = 5) -> str:
    """``5 tensors (a, b, c, ...)``: how many there are, and the first few."""
    known = list(names)
    dots = ", ..." if len(known) > most else ""
    return f"{len(known)} tensor{'' if len(known) == 1 else 's'} ({', '.join(known[:most])}{dots})"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"{path} is not valid JSON: {problem}. Download or copy it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}; expected a mapping. Download or copy it again.")
    return content


def _open_files(folder: Path, reference: str, *, allow_pickle: bool) -> dict[str, WeightFile]:
    """Tensor name -> the file that holds it."""
    if (folder / _SINGLE).exists():
        return _whole(SafetensorsFile(folder / _SINGLE))
    if (folder / _INDEX).exists():
        return _shards(folder / _INDEX, pickled=False)
    pickled = [name for name in (_PICKLE, _PICKLE_INDEX) if (folder / name).exists()]
    if pickled and not allow_pickle:
        raise ModelError(
            f"{reference} has only pickled weights ({pickled[0]} in {folder}), and reading such a file can run code "
            "that is hidden in it. Prefer a safetensors version (loading it with transformers and calling "
            "save_pretrained writes one); if you trust the file, pass --allow-pickle (allow_pickle: true in a "
            "search file)."
        )
    if _PICKLE in pickled:
        return _whole(PickleFile(folder / _PICKLE))
    if pickled:
        return _shards(folder / _PICKLE_INDEX, pickled=True)
    raise ModelError(_nothing_found(folder, reference))


def _whole(file: WeightFile) -> dict[str, WeightFile]:
    return dict.fromkeys(file.tensors, file)


def _shards(index: Path, *, pickled: bool) -> dict[str, WeightFile]:
    content = _read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files. Download or copy it again.")
    folder = index.parent
    counts = Counter(places.values())
    odd = [shard for shard in counts if Path(shard).name != shard]
    if odd:
        raise ModelError(f"{index} names {odd[0]!r}, which is not a file beside it. Download or copy it again.")
    missing = [shard for shard in counts if not (folder / shard).exists()]
    if missing:
        total = (content.get("metadata") or {}).get("total_size")
        here = sum((folder / shard).stat().st_size for shard in counts if shard not in missing)
        size = f" All shards together hold {total:,} bytes of tensors; the files found have {here:,}." if total else ""
        raise ModelError(
            f"{len(missing)} of the {len(counts)} shards that {index} names are missing: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''} (with {counts[missing[0]]} tensors in the first).{size} "
            "Download or copy them again."
        )
    files: dict[str, WeightFile] = {
        shard: PickleFile(folder / shard) if pickled else SafetensorsFile(folder / shard) for shard in sorted(counts)
    }
    absent = [name for name, shard in places.items() if name not in files[shard].tensors]
    if absent:
        raise ModelError(
            f"{folder / places[absent[0]]} lacks {list_names(absent)} that {index.name} puts there. "
            "Download or copy both again."
        )
    return {name: file for shard, file in files.items() for name in file.tensors if places.get(name) == shard}


def _nothing_found(folder: Path, reference: str) -> str:
    if (folder / "adapter_config.json").exists():
        named = _read_json(folder / "adapter_config.json").get("base_model_name_or_path") or "its-base-model"
        return (
            f"{reference} is an adapter without the model that it belongs on. Write model+adapter, "
            f"for example {named}+{reference}."
        )
    other = sorted({path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern)})
    found = f" It holds {', '.join(other[:4])}, which is not read." if other else ""
    return f"{reference} has no weights: {folder} has neither {_SINGLE} nor {_INDEX}.{found}"
