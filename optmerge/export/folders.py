"""Which tensors go into which folder of a recipe's checkpoint: one folder, or the body's and one per expert.

for plan in plan_folders(recipe, family):
    plan.folder, plan.specs, plan.written_bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from optmerge.export.companions import auto_model_class
from optmerge.export.merged import Sink, disk_order, stream_merged, stream_tensor
from optmerge.export.safetensors_writer import TensorSpec
from optmerge.merging.merge import Merge
from optmerge.merging.recipe import Recipe

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family

BODY = "body"


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What one folder of the checkpoint holds.

    Attributes:
        folder: Its name below the exported folder; empty for the folder itself.
        config_of: Whose config.json it carries.
        architecture: The class name that the config gets; None keeps its own.
        naming: Whose tensor names it uses: "base" or an expert.
        dtype: The merged tensors' type.
        body: The merged tensors and the base's buffers, in the order in which they are made.
        own: Tensors that are not merged and come from ``config_of`` as they are: heads, and what no parameter takes.
        body_from: An earlier folder that holds the same body under the same names.
    """

    folder: str
    config_of: Checkpoint
    architecture: str | None
    naming: str
    dtype: torch.dtype
    body: list[TensorSpec]
    own: list[TensorSpec]
    body_from: str | None = None

    @property
    def specs(self) -> list[TensorSpec]:
        """All tensors; those of wider types first, so that every value is aligned in the file."""
        wide, narrow = self._sides()
        return wide + self.body + narrow

    @property
    def written_bytes(self) -> int:
        """Bytes of tensors that this folder adds to the disk."""
        return sum(spec.nbytes for spec in (self.own if self.body_from is not None else self.specs))

    def stream(self, merge: Merge, sink: Sink) -> None:
        """Every tensor, in the order of ``specs``."""
        family = merge.family
        wide, narrow = self._sides()
        self.stream_own(wide, sink)
        for buffer, spec in _body_buffers(family, self.naming, self.dtype):
            sink.begin(spec.name)
            stream_tensor(family.maps["base"].read(family.base, buffer), sink)
        stream_merged(merge, self.naming, sink, self.dtype)
        self.stream_own(narrow, sink)

    def stream_own(self, specs: list[TensorSpec], sink: Sink) -> None:
        """Tensors of ``own``."""
        for spec in specs:
            sink.begin(spec.name)
            stream_tensor(self.config_of.read(spec.name), sink)

    def _sides(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        width = min(spec.dtype.itemsize for spec in self.body)
        return [s for s in self.own if s.dtype.itemsize > width], [s for s in self.own if s.dtype.itemsize <= width]


def plan_folders(recipe: Recipe, family: Family) -> list[FolderPlan]:
    """The folders of a recipe's checkpoint, in the order in which they are written."""
    dtype = torch_dtype(recipe.dtype)
    if recipe.heads != "own":
        return [plan_base(recipe, family)]
    bodies = {name: _body_specs(family, name, dtype) for name in family.experts}
    first = next(iter(bodies))
    naming = first if all(body == bodies[first] for body in bodies.values()) else "base"
    body = _body_specs(family, naming, dtype)
    plans = [FolderPlan(BODY, family.base, auto_model_class(family.base), naming, dtype, body, [])]
    for name, checkpoint in family.experts.items():
        same = bodies[name] == body
        own = _own_specs(checkpoint, bodies[name], dtype)
        plans.append(FolderPlan(name, checkpoint, None, name, dtype, bodies[name], own, BODY if same else None))
    return plans


def plan_base(recipe: Recipe, family: Family) -> FolderPlan:
    """The merged model under the base's names.

    With own heads these are the body's; with a merged head also what the base has on disk and no parameter takes.
    """
    dtype = torch_dtype(recipe.dtype)
    body = _body_specs(family, "base", dtype)
    own = _own_specs(family.base, body, dtype) if recipe.heads != "own" else []
    return FolderPlan("", family.base, None, "base", dtype, body, own)


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` and the like as a torch dtype."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _body_specs(family: Family, naming: str, dtype: torch.dtype) -> list[TensorSpec]:
    tensors = family.checkpoint(naming).tensors
    return [spec for _, spec in _body_buffers(family, naming, dtype)] + [
        TensorSpec(disk, tuple(tensors[disk].shape), dtype)
        for disks in disk_order(family, naming).values()
        for disk in disks
    ]


def _body_buffers(family: Family, naming: str, dtype: torch.dtype) -> list[tuple[str, TensorSpec]]:
    """Persistent buffers that the merged model takes from the base (batch-norm statistics), as in the search."""
    layout, tensors = family.maps[naming], family.checkpoint(naming).tensors
    found = []
    for buffer in layout.buffers:
        if buffer in family.maps["base"].buffers:
            (disk,) = layout.disk_names(buffer)
            kept = dtype if tensors[disk].dtype.is_floating_point else tensors[disk].dtype
            if kept.itemsize >= dtype.itemsize:  # narrower ones would leave the parameters unaligned
                found.append((buffer, TensorSpec(disk, tuple(tensors[disk].shape), kept)))
    return sorted(found, key=lambda pair: -pair[1].dtype.itemsize)


def _own_specs(checkpoint: Checkpoint, body: list[TensorSpec], dtype: torch.dtype) -> list[TensorSpec]:
    taken = {spec.name for spec in body}
    specs = [
        TensorSpec(name, tuple(info.shape), dtype if info.dtype.is_floating_point else info.dtype)
        for name, info in checkpoint.tensors.items()
        if name not in taken
    ]
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)  # stable: disk order within a width
