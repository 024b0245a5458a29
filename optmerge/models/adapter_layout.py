"""Where an adapter's tensors act: which disk tensors of the base its factors change, and which it replaces.

Adapters name modules, by the names of the transformers that they were trained with; the base's file may name, cut or
stack its tensors in another way. Everything is settled here from headers alone, so that a misfit shows before any work.

    layout = AdapterLayout(folder, peft, file, base)
    layout.patches["model.layers.0.self_attn.q_proj.weight"]     # [Patch(update, piece)]
    layout.saved["lm_head.weight"]                               # its name in the adapter's file
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optmerge.errors import ModelError
from optmerge.models.adapter_config import adapted_class, adapted_kind, scaling_of
from optmerge.models.architecture import model_on_meta
from optmerge.models.checkpoint import Checkpoint, list_names
from optmerge.models.conversions import checkpoint_map
from optmerge.models.lora_factors import LoraFactors
from optmerge.models.mapped import WeightFile
from optmerge.models.mapping import CheckpointMap, Piece, extent

_ROOT = "base_model.model."
_KEY = re.compile(
    rf"{re.escape(_ROOT)}(?P<module>.+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)"
)
_LINEAR, _EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
_NESTED = ".base_layer"  # one for every wrapper between the module and the factors


@dataclass(frozen=True, slots=True)
class Update:
    """One pair of factors and the parameter that it changes.

    Attributes:
        a: Name of A [experts * rank, in] in the adapter's file.
        b: Name of B [out, rank * experts].
        experts: How many matrices the parameter stacks; 1 for a matrix.
        shape: Of the parameter.
        scaling: What multiplies B @ A.
        transposed: The parameter's last dimensions are [in, out] (embeddings, Conv1D).
    """

    a: str
    b: str
    experts: int
    shape: tuple[int, ...]
    scaling: float
    transposed: bool

    def factors(self, file: WeightFile) -> LoraFactors:
        """The factors in the parameter's layout, views of the file.

        Of stacked ones, A holds each expert's ranks together and B each rank's experts (peft's ``ParamWrapper``).
        """
        a, b = file.read(self.a), file.read(self.b)
        if len(self.shape) == 3:
            a = a.reshape(self.experts, -1, a.shape[-1])
            b = b.reshape(b.shape[0], -1, self.experts).permute(2, 0, 1)
        return LoraFactors(a.mT, b.mT, self.scaling) if self.transposed else LoraFactors(b, a, self.scaling)


@dataclass(frozen=True, slots=True)
class Patch:
    """The share of an update that falls into one disk tensor.

    Attributes:
        update: What is added.
        piece: Which box of the updated parameter the disk tensor holds, and how.
    """

    update: Update
    piece: Piece

    def added_to(self, disk: torch.Tensor, file: WeightFile) -> torch.Tensor:
        """The disk tensor (fp32 or fp64, never written to) with the update in it."""
        delta = self.update.factors(file).box(self.piece.index).product(disk.dtype)
        if self.piece.view is None:
            return disk + delta
        box = replace(self.piece, index=())
        changed = disk.clone()
        box.write_disk(changed, box.of_disk(disk) + delta)
        return changed


class AdapterLayout:
    """Every tensor of an adapter's file, tied to the base's disk tensors.

    Attributes:
        patches: Disk tensor -> what is added to it.
        saved: Disk tensor -> name in the adapter's file of the whole tensor that replaces it, or joins the base's.

    Raises:
        ModelError: A tensor is none of plain LoRA's, lacks its other half, or does not fit the base.
    """

    def __init__(self, folder: Path, peft: Any, file: WeightFile, base: Checkpoint) -> None:
        self._folder = folder
        self._peft = peft
        self._file = file
        self._base = base
        self.patches: dict[str, list[Patch]] = {}
        self.saved: dict[str, str] = {}
        factors: dict[str, dict[str, str]] = {}
        for key in file.tensors:
            match = _KEY.fullmatch(key)
            if match:
                factors.setdefault(match["module"], {})[match["part"]] = key
            elif key.startswith(_ROOT) and "lora_" not in key:
                self._save(key)
            else:
                raise ModelError(
                    f"The adapter {folder} has a tensor {key}, which plain LoRA does not have; "
                    "adapters of other kinds cannot be merged here. Merge it with peft's merge_and_unload first."
                )
        for module, parts in factors.items():
            self._add(module, parts)

    def _save(self, key: str) -> None:
        name = key.removeprefix(_ROOT).replace(f"{_NESTED}.", ".")
        pieces = self._pieces(name) or (Piece(name, name, (), None, self._file.tensors[key].shape),)
        if len(pieces) > 1 or pieces[0].view is not None:
            raise ModelError(
                f"The adapter {self._folder} replaces {name}, which is stored as "
                f"{list_names(piece.disk for piece in pieces)} in {self._base.reference} and is converted on load. "
                "Merge it with peft's merge_and_unload first, save the model, and name its folder instead."
            )
        self.saved[pieces[0].disk] = key

    def _add(self, wrapped: str, parts: dict[str, str]) -> None:
        kind = _EMBEDDING if any(part in parts for part in _EMBEDDING) else _LINEAR
        lacking = [part for part in kind if part not in parts]
        if lacking:
            raise ModelError(
                f"The adapter {self._folder} has half an update of {wrapped}: {lacking[0]} is missing. "
                "Save or download it again."
            )
        module, nesting = wrapped.removesuffix(_NESTED * wrapped.count(_NESTED)), wrapped.count(_NESTED)
        parameter = self._targeted(module, nesting)
        target = f"{module}.{parameter or 'weight'}"
        pieces = self._pieces(target, copies=kind is _EMBEDDING)
        if not pieces:
            raise self._unknown(target)
        update = self._fit(module, target, pieces, parts[kind[0]], parts[kind[1]], named=parameter is not None)
        for piece in pieces:
            self.patches.setdefault(piece.disk, []).append(Patch(update, piece))

    def _fit(self, module: str, target: str, pieces: Sequence[Piece], a: str, b: str, *, named: bool) -> Update:
        """The update, once its factors' shapes agree with the parameter's."""
        shape = self._shape(pieces)
        experts = shape[0] if len(shape) == 3 else 1
        shape_a, shape_b = self._file.tensors[a].shape, self._file.tensors[b].shape
        matrices = len(shape_a) == len(shape_b) == 2 and len(shape) in (2, 3) and shape_a[0] == shape_b[1]
        straight = (*shape[:-2], shape_b[0], shape_a[-1])
        crossed = (*shape[:-2], shape_a[-1], shape_b[0])
        if not matrices or shape_a[0] % experts or shape not in (straight, crossed):
            raise ModelError(
                f"The adapter {self._folder} does not fit {self._base.reference}: its factors for {module} are "
                f"{list(shape_b)} and {list(shape_a)}, and the tensor {pieces[0].disk if len(pieces) == 1 else target} "
                f"is {list(shape)}. It was made for another model, or for layers that are not linear."
            )
        rank = shape_a[0] // experts
        return Update(
            a=a,
            b=b,
            experts=experts,
            shape=shape,
            scaling=scaling_of(self._peft, target if named else module, rank=rank),
            transposed=self._stored_crosswise(target, pieces[0]) if straight == crossed else shape == crossed,
        )

    def _shape(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        saved = self.saved.get(pieces[0].disk)
        return self._file.tensors[saved].shape if saved is not None else extent(pieces)

    def _targeted(self, module: str, nesting: int) -> str | None:
        """Which of the module's own parameters a wrapper changes, when ``target_parameters`` names any of them.

        peft wraps them in the module's order, each wrapper around the ones before.
        """
        targets = self._peft.target_parameters or ()
        owner = self._module(module) if targets else None
        if owner is None:
            return None
        names = [name for name, _ in owner.named_parameters(recurse=False)]
        wrapped = [name for name in names if any(f".{module}.{name}".endswith(f".{target}") for target in targets)]
        if not wrapped:
            return None
        if nesting >= len(wrapped):
            raise ModelError(
                f"The adapter {self._folder} has factors for {nesting + 1} parameters of {module}, and its "
                f"target_parameters name {', '.join(wrapped)} there. Save or download it again."
            )
        return wrapped[len(wrapped) - 1 - nesting]

    def _stored_crosswise(self, target: str, piece: Piece) -> bool:
        """Whether a square parameter is [in, out]: its shape cannot tell, the class of its module can."""
        from transformers.pytorch_utils import Conv1D

        owner = self._module(target.rpartition(".")[0])
        if owner is None:
            owner = self._model.get_submodule(self._map.parameter_of(piece.disk).rpartition(".")[0])
        return isinstance(owner, nn.Embedding | Conv1D) or bool(getattr(owner, "is_transposed", False))

    def _pieces(self, name: str, *, copies: bool = False) -> tuple[Piece, ...]:
        """How the base's disk tensors hold a module's tensor; empty when none does.

        Args:
            name: By the adapted model's names, or by those on disk.
            copies: Look for second copies of a tied parameter too.
        """
        disk = self._same_name(name)
        if disk is not None and not (copies and self._config.tie_word_embeddings):
            return (Piece(disk, name, (), None, self._base.tensors[disk].shape),)
        parameter = self._map.parameter_of(disk) if disk is not None else name
        return tuple(piece for piece in self._map.pieces if piece.parameter == parameter)

    def _same_name(self, name: str) -> str | None:
        tensors = self._base.tensors
        if name in tensors:
            return name
        short = name.partition(".")[2]
        same = [short] if short in tensors else [disk for disk in tensors if disk.partition(".")[2] == name]
        return same[0] if len(same) == 1 else None  # the body's prefix is there on one side only

    def _unknown(self, target: str) -> ModelError:
        module, _, name = target.rpartition(".")
        value = getattr(self._module(module), name, None)
        tied = next((other for other, parameter in self._model.named_parameters() if parameter is value), None)
        if tied is not None and tied != target:
            return ModelError(
                f"The adapter {self._folder} changes {target}, which is tied to {tied} in {self._base.reference}: a "
                "merge would change both, and it was trained to change one. Load the base with transformers and "
                "tie_word_embeddings=False, give the head a copy of the embedding, save it, and name that folder as "
                "the adapter's base."
            )
        return ModelError(
            f"The adapter {self._folder} changes {target}, which is unknown in {self._base.reference}. "
            "Check that it was made for this model, or merge it with peft's merge_and_unload first."
        )

    def _module(self, name: str) -> nn.Module | None:
        try:
            return self._model.get_submodule(name)
        except AttributeError:
            return None

    @cached_property
    def _config(self) -> Any:
        config = self._base.config()
        named = adapted_class(self._peft, config)
        if named:
            config.architectures = [named]
        return config

    @cached_property
    def _model(self) -> nn.Module:
        return model_on_meta(self._config, adapted_kind(self._peft))

    @cached_property
    def _map(self) -> CheckpointMap:
        return checkpoint_map(self._model, self._base)
