"""A checkpoint whose vocabulary is another's: its embedding rows stand where the base has those tokens.

    aligned = AlignedCheckpoint(expert, base, rows, tensors, renumbered=True)
    aligned.read("model.embed_tokens.weight")       # as many rows as the base's; never write to it

Rows that have no counterpart are the base's own, so that their task vector is zero. Where the expert's first rows are
just the ones wanted, reading gives a view of its file. Otherwise the embedding (and an untied head) is made in memory
and written to the cache at the first reading, and mapped from there like any other tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from optmerge.atomic import atomic_path
from optmerge.models.cache import cache_dir
from optmerge.models.checkpoint import Checkpoint
from optmerge.models.mapped import SafetensorsFile, TensorInfo

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# What a config says of its vocabulary; ids are then the base's.
_KEYS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


class AlignedCheckpoint:
    """An expert in the base's vocabulary.

    Args:
        inner: The expert as it is.
        base: Whose vocabulary it gets.
        index: int64[rows of the base]: which row of the expert stands there, -1 for the base's own.
        tensors: Disk tensor of the expert with one row per token -> the base's disk tensor of that parameter.
        renumbered: Whether the expert's own tokenizer numbers tokens otherwise than the rows.
    """

    def __init__(
        self,
        inner: Checkpoint,
        base: Checkpoint,
        index: npt.NDArray[np.int64],
        tensors: Mapping[str, str],
        *,
        renumbered: bool,
    ) -> None:
        self.inner = inner
        self.base = base
        self.renumbered = renumbered
        self.reference = inner.reference
        self.revision = inner.revision
        self.folder = inner.folder
        self._index = index
        self._aligned = dict(tensors)
        self._is_prefix = np.array_equal(index, np.arange(len(index)))
        changed = {own: self._info(own, theirs) for own, theirs in tensors.items()}
        self.tensors: Mapping[str, TensorInfo] = {**inner.tensors, **changed}
        self._made: SafetensorsFile | None = None
        self._lock = threading.Lock()

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, a view of a mapped file wherever the expert's is; never write to it."""
        if name not in self._aligned:
            return self.inner.read(name)
        if self._is_prefix:
            return self.inner.read(name)[: len(self._index)]
        with self._lock:
            if self._made is None:
                self._made = SafetensorsFile(self._file())
        return self._made.read(name)

    def sha256(self) -> str:
        """A hash of the expert's content, of the base's, and of which row stands where."""
        facts = [
            self.inner.sha256(),
            self.base.sha256(),
            hashlib.sha256(self._index.astype("<i8").tobytes()).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The weight files."""
        return (*self.inner.sources, *([self._made.path] if self._made else []))

    def config(self) -> PreTrainedConfig:
        """The expert's config with the base's vocabulary."""
        config, base = self.inner.config(), self.base.config()
        own, theirs = config.get_text_config(), base.get_text_config()
        for key in _KEYS:
            if hasattr(own, key) and hasattr(theirs, key):
                setattr(own, key, getattr(theirs, key))
        return config

    def described(self, config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
        """The same for the content of config.json: the expert's with the base's vocabulary."""
        changed = {key: base[key] for key in _KEYS if key in config and key in base}
        if isinstance(config.get("text_config"), dict) and isinstance(base.get("text_config"), dict):
            changed["text_config"] = self.described(config["text_config"], base["text_config"])
        return {**config, **changed}

    def _info(self, own: str, theirs: str) -> TensorInfo:
        info, base = self.inner.tensors[own], self.base.tensors[theirs]
        # The base's own rows must survive unchanged, so the type is one that holds both.
        dtype = info.dtype if self._is_prefix else torch.promote_types(info.dtype, base.dtype)
        shape = (len(self._index), *info.shape[1:])
        return replace(info, shape=shape, dtype=dtype, nbytes=math.prod(shape) * dtype.itemsize)

    def _file(self) -> Path:
        """The aligned tensors in the cache, written if they are not there."""
        from safetensors.torch import save_file

        path = cache_dir() / "vocabularies" / f"{self.sha256()}.safetensors"
        if not path.is_file():
            with atomic_path(path) as temporary:
                save_file({name: self._gathered(name) for name in self._aligned}, temporary)
        return path

    def _gathered(self, name: str) -> torch.Tensor:
        own, base = self.inner.read(name), self.base.read(self._aligned[name])
        aligned = base.to(self.tensors[name].dtype, copy=True)
        places = torch.from_numpy(np.flatnonzero(self._index >= 0))
        aligned[places] = own[torch.from_numpy(self._index)[places]].to(aligned.dtype)
        return aligned
