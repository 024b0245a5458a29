"""A model with a LoRA adapter on it, as one checkpoint: every tensor merged when it is read, or left as factors.

W + scaling * B @ A in fp32, cast once to the base's dtype; the result is what peft's ``merge_and_unload`` gives.
Whole tensors that the adapter carries (``modules_to_save``, trained biases) replace or join the base's.

    checkpoint = AdapterCheckpoint(base, Path("zoo/adapter"), reference="zoo/base+zoo/adapter")
    checkpoint.read("encoder.layer.0.attention.self.query.weight")          # dense
    checkpoint.delta_form(layout.pieces_to_read("encoder.layer.0.attention.self.query.weight"))     # factors
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from optmerge.models.adapter_config import (
    adapted_class,
    adapted_kind,
    adapter_facts,
    open_adapter_file,
    read_peft_config,
)
from optmerge.models.adapter_layout import AdapterLayout, Patch
from optmerge.models.cache import file_sha256
from optmerge.models.checkpoint import Checkpoint
from optmerge.models.lora_factors import LoraFactors, assemble
from optmerge.models.mapped import TensorInfo
from optmerge.models.mapping import Piece, extent

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DeltaForm = LoraFactors | Literal["unchanged", "dense"]
"""How an expert's delta of a parameter can be had: as factors, not at all since it is zero, or from the whole only."""


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
        self._peft = read_peft_config(adapter_folder)
        self._file = open_adapter_file(adapter_folder, allow_pickle=allow_pickle)
        layout = AdapterLayout(adapter_folder, self._peft, self._file, base)
        self._patches = layout.patches
        self._saved = layout.saved
        self._saved_is_base: dict[str, bool] = {}
        whole = {disk: replace(self._file.tensors[key], name=disk) for disk, key in self._saved.items()}
        self.tensors: Mapping[str, TensorInfo] = {**base.tensors, **whole}

    def read(self, name: str) -> torch.Tensor:
        """A merged tensor; one that the adapter leaves alone is a view of the base's mapped file."""
        base = self._file.read(self._saved[name]) if name in self._saved else self.base.read(name)
        patches = self._patches.get(name, ())
        value = base.to(torch.promote_types(base.dtype, torch.float32)) if patches else base
        for patch in patches:
            value = patch.added_to(value, self._file)
        return value.to(base.dtype)

    def is_as_finite_as_base(self, name: str) -> bool:
        """Whether a tensor holds NaN or Inf just where the base's does; told from the factors, nothing is multiplied.

        So it is when no value moves by as much as half a step at the far end of its type.
        """
        if name in self._saved:
            return False
        moved = sum(patch.update.factors(self._file).bound() for patch in self._patches.get(name, ()))
        kinds = [torch.finfo(dtype) for dtype in (self.base.tensors[name].dtype, torch.float32)] if moved else []
        return all(moved < kind.max * kind.eps / 4 for kind in kinds)

    def delta_form(self, pieces: Sequence[Piece]) -> DeltaForm:
        """The adapter's delta of one parameter of its own base, without making it dense.

        Args:
            pieces: How disk tensors hold the parameter.

        Returns:
            ``"unchanged"`` where it stays as it is in the base, be it that a factor is zero; the factors of the delta;
            ``"dense"`` where it is replaced as a whole, or cut up on disk in a way that no pair of factors follows.
        """
        if any(self._is_replaced(piece.disk) for piece in pieces):
            return "dense"
        patches = [
            (piece, patch)
            for piece in pieces
            for patch in self._patches.get(piece.disk, ())
            if patch.piece.view is None or _same_place(piece, patch.piece)  # else of the disk tensor's other parameters
        ]
        if not patches:
            return "unchanged"
        update = patches[0][1].update
        as_one = len(patches) == len(pieces) and all(
            patch.update is update and _same_place(piece, patch.piece) for piece, patch in patches
        )
        factors = update.factors(self._file) if as_one else self._assembled(pieces, patches)
        if factors is None:
            return "dense"
        return factors if factors.b.any() and factors.a.any() else "unchanged"

    def _assembled(self, pieces: Sequence[Piece], patches: Sequence[tuple[Piece, Patch]]) -> LoraFactors | None:
        """Factors of a parameter that is stacked or cut from disk tensors with factors of their own."""
        parts = []
        for piece, patch in patches:
            rows = _rows_of_disk(piece, self.tensors[piece.disk].shape)
            if rows is None or patch.piece.index or patch.piece.view is not None:
                return None
            whole = patch.update.factors(self._file)
            parts.append((piece.index, LoraFactors(whole.b[rows], whole.a, whole.scaling)))
        dtype = torch.promote_types(self.tensors[pieces[0].disk].dtype, torch.float32)
        return assemble(extent(pieces), parts, dtype=dtype)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The base's weight files and the adapter's."""
        return (*self.base.sources, self._file.path)

    def sha256(self) -> str:
        """A hash of the base, of the adapter's weights and of its config."""
        facts = [self.base.sha256(), file_sha256(self._file.path), adapter_facts(self.adapter_folder)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def config(self) -> PreTrainedConfig:
        """The base's config, made to describe the adapter's class of model and its head."""
        config = self.base.config()
        named = adapted_class(self._peft, config)
        if named:
            config.architectures = [named]
        saved = [self._file.tensors[key] for key in self._saved.values() if not key.endswith(".base_layer.weight")]
        heads = [info.shape[0] for info in saved if len(info.shape) == 2]
        classifies = adapted_kind(self._peft) in ("sequence-classification", "token-classification")
        if classifies and heads and min(heads) != config.num_labels:
            config.num_labels = min(heads)  # a head's last matrix has one row per label, its others more
        return config

    def _is_replaced(self, disk: str) -> bool:
        """Whether the adapter carries a whole tensor in this one's place, with other values than the base's."""
        if disk not in self._saved:
            return False
        if disk not in self._saved_is_base:  # peft stores the untrained embedding beside its factors
            saved = self._file.read(self._saved[disk])
            self._saved_is_base[disk] = disk in self.base.tensors and same_values(saved, self.base.read(disk))
        return not self._saved_is_base[disk]


def same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have one dtype, one shape and equal values."""
    return one.dtype == other.dtype and torch.equal(one, other)


def _same_place(one: Piece, other: Piece) -> bool:
    """Whether two pieces are the same part of a disk tensor and the same box of their parameters."""
    return (one.index, one.view, one.lengths) == (other.index, other.view, other.lengths)


def _rows_of_disk(piece: Piece, shape: tuple[int, ...]) -> slice | None:
    """The rows of a disk matrix that a piece is, as they are; None when it is anything else."""
    if len(shape) != 2:
        return None
    if piece.view is None:
        return slice(0, shape[0])
    sizes, strides, offset = piece.view
    row_major = tuple(math.prod(sizes[position + 1 :]) for position in range(len(sizes)))
    rows, columns = piece.numel // shape[-1], shape[-1]
    if strides != row_major or piece.lengths[-1] != columns or offset % columns:
        return None
    return slice(offset // columns, offset // columns + rows)
