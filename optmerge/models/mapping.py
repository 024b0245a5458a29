"""The checkpoint map: which tensor on disk holds which part of which module parameter.

transformers renames weights on load and converts some of them (Mixtral's experts become one tensor). What becomes of
them is kept as pieces: a box of a parameter that is a strided view of a disk tensor.

    layout = checkpoint_map(model_on_meta, checkpoint)                            # see `conversions`
    weight = layout.read(checkpoint, "model.layers.0.mlp.experts.gate_up_proj")   # module layout
    on_disk = layout.split("model.layers.0.mlp.experts.gate_up_proj", weight)     # {disk name: tensor}, exact inverse
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from optmerge.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Piece:
    """A box of a parameter that is a strided view of one disk tensor.

    Attributes:
        disk: Name of the disk tensor.
        parameter: Name of the module parameter (or persistent buffer).
        index: Where in the parameter the box sits; ``()`` is all of it.
        view: Sizes, strides and offset of the disk tensor's part; ``None`` when the box is the disk tensor as it is.
        lengths: The box's shape.
    """

    disk: str
    parameter: str
    index: tuple[slice, ...]
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None
    lengths: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements the piece has."""
        return math.prod(self.lengths)

    def of_disk(self, tensor: torch.Tensor) -> torch.Tensor:
        """The piece in module layout, a view of the disk tensor wherever its layout allows."""
        if self.view is None:
            return tensor
        return self._part(tensor.contiguous()).reshape(self.lengths)

    def write_disk(self, disk: torch.Tensor, parameter: torch.Tensor) -> None:
        """Write the parameter's box into its place in the contiguous disk tensor."""
        box = parameter[self.index]
        if self.view is None:
            disk.copy_(box)
        else:
            part = self._part(disk)
            part.copy_(box.reshape(part.shape))

    def _part(self, disk: torch.Tensor) -> torch.Tensor:
        """The strided view of the disk tensor, which may itself start anywhere in its storage (a mapped file)."""
        assert self.view is not None
        sizes, strides, offset = self.view
        return disk.as_strided(sizes, strides, disk.storage_offset() + offset)


def extent(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """The shape of the parameter that some pieces fill."""
    first = pieces[0]
    if not first.index:
        return first.lengths
    return tuple(max(piece.index[dim].stop for piece in pieces) for dim in range(len(first.index)))


class CheckpointMap:
    """Ties the tensors of one checkpoint to the parameters of one model.

    Attributes:
        pieces: Every (disk tensor, parameter) pair, in the order of the model's parameters.
        unused: Disk tensors that no parameter takes, buffers such as ``position_ids`` included.
        missing: Parameters that no disk tensor fills.
        mismatched: Parameter -> (shape that the disk tensors give, shape that the model wants).
        duplicates: Disk tensor -> parameter, for the second and later disk copies of a tied parameter. Reading takes
            the first copy, splitting writes them all.
        buffers: Persistent buffers that the checkpoint fills (batch-norm statistics); `read` knows them too.
        buffer_pieces: Persistent buffer -> the piece that fills it.
        shapes: Parameter of the model -> its shape there.
    """

    def __init__(
        self,
        pieces: Iterable[Piece],
        *,
        disk_shapes: Mapping[str, tuple[int, ...]],
        shapes: Mapping[str, tuple[int, ...]],
        buffers: Mapping[str, Piece],
        duplicates: Mapping[str, str],
        reference: str,
    ) -> None:
        by_parameter: dict[str, list[Piece]] = defaultdict(list)
        for piece in pieces:
            by_parameter[piece.parameter].append(piece)
        self._by_parameter = {name: tuple(by_parameter[name]) for name in shapes if name in by_parameter}
        self.pieces = tuple(piece for group in self._by_parameter.values() for piece in group)
        self._by_disk: dict[str, list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            self._by_disk[piece.disk].append(piece)
        self._disk_shapes = dict(disk_shapes)
        self._reference = reference
        self.buffer_pieces = dict(buffers)
        self.buffers = tuple(buffers)
        self.shapes = dict(shapes)
        self.duplicates = dict(duplicates)
        self.unused = tuple(name for name in disk_shapes if name not in self._by_disk)
        self.missing = tuple(name for name in shapes if name not in self._by_parameter)
        found = {name: extent(self.pieces_to_read(name)) for name in self._by_parameter}
        self.mismatched = {name: (found[name], shapes[name]) for name in found if found[name] != shapes[name]}

    def __contains__(self, parameter: str) -> bool:
        """Whether a tensor on disk fills the parameter."""
        return parameter in self._by_parameter

    def pieces_to_read(self, parameter: str) -> tuple[Piece, ...]:
        """The pieces that fill a parameter once, without further copies of a tied one.

        Raises:
            ModelError: If the checkpoint has no tensor for it.
        """
        pieces = self._pieces_of(parameter)
        return tuple(piece for piece in pieces if piece.disk not in self.duplicates) or pieces

    def _pieces_of(self, parameter: str) -> tuple[Piece, ...]:
        if parameter in self._by_parameter:
            return self._by_parameter[parameter]
        if parameter in self.buffer_pieces:
            return (self.buffer_pieces[parameter],)
        if parameter in self.missing:
            raise ModelError(f"The checkpoint {self._reference} has no tensor for the model's parameter {parameter!r}.")
        raise ModelError(
            f"{parameter!r} is not a parameter of the model of {self._reference}."
            f"{did_you_mean(parameter, self._by_parameter)}"
        )

    def disk_names(self, parameter: str) -> tuple[str, ...]:
        """The disk tensors that hold a parameter (or its tied copies), in the order of its elements."""
        return tuple(dict.fromkeys(piece.disk for piece in self._pieces_of(parameter)))

    def parameters_of(self, disk: str) -> tuple[str, ...]:
        """The parameters that take their values from a disk tensor; more than one when a load cuts it up."""
        if disk not in self._by_disk:
            where = "is not taken by any parameter" if disk in self._disk_shapes else "is not in the checkpoint"
            raise ModelError(f"The tensor {disk!r} {where} of {self._reference}.{did_you_mean(disk, self._by_disk)}")
        return tuple(dict.fromkeys(piece.parameter for piece in self._by_disk[disk]))

    def parameter_of(self, disk: str) -> str:
        """The parameter (the first of several) that takes its values from a disk tensor."""
        return self.parameters_of(disk)[0]

    def read(self, checkpoint: Checkpoint, parameter: str) -> torch.Tensor:
        """A parameter's (or persistent buffer's) value in module layout.

        The result is a view of the mapped file when one disk tensor holds it all; never write to it.

        Raises:
            ModelError: If the checkpoint has no tensor for it.
        """
        pieces = self.pieces_to_read(parameter)
        if not pieces[0].index:
            return pieces[0].of_disk(checkpoint.read(pieces[0].disk))
        parts = [piece.of_disk(checkpoint.read(piece.disk)) for piece in pieces]
        dtype = parts[0].dtype
        for part in parts[1:]:
            dtype = torch.promote_types(dtype, part.dtype)
        value = torch.empty(extent(pieces), dtype=dtype)
        for piece, part in zip(pieces, parts, strict=True):
            value[piece.index].copy_(part)
        return value

    def split(self, parameter: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The disk tensors that hold a parameter, made from its value in module layout; the inverse of `read`.

        Tied copies on disk are all written. The results may be views of ``tensor``.

        Raises:
            ModelError: If a disk tensor also holds other parameters; `disk_tensor` makes those.
        """
        return {disk: self.disk_tensor(disk, {parameter: tensor}) for disk in self.disk_names(parameter)}

    def disk_tensor(self, disk: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """One disk tensor, made from the values (module layout) of all the parameters that it holds.

        Raises:
            ModelError: If one of those values is not given.
        """
        owners = self.parameters_of(disk)
        absent = [name for name in owners if name not in values]
        if absent:
            raise ModelError(
                f"The tensor {disk!r} of {self._reference} holds {', '.join(owners)} together, and can only be written "
                f"when all their values are given; {', '.join(absent)} was not."
            )
        pieces = self._by_disk[disk]
        if pieces[0].view is None:
            return values[owners[0]][pieces[0].index]
        first = values[owners[0]]
        out = torch.empty(self._disk_shapes[disk], dtype=first.dtype, device=first.device)
        for piece in pieces:
            piece.write_disk(out, values[piece.parameter])
        return out
