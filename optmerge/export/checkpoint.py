"""A transformers checkpoint, streamed: one merged parameter in memory at a time, whatever the model's size.

With one merged head the folder is the checkpoint. With a head per expert it holds ``body/`` (for ``AutoModel``) and
one folder per expert (for the expert's own Auto class, with its head and label names); the merged body's file is stored
once and hard-linked into each of them where the disk can.

    CheckpointExporter().export(recipe, family, Path("merged"))
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from optmerge.atomic import atomic_directory
from optmerge.errors import RunError
from optmerge.export.base import Exporter, require_expressible, require_new_folder
from optmerge.export.card import model_card
from optmerge.export.companions import auto_model_class, copy_tokenizer, write_config
from optmerge.export.references import outside_recipe
from optmerge.export.safetensors_writer import (
    INDEX,
    SHARD_BYTES,
    ShardedWriter,
    TensorSpec,
    index_json,
    shard_name,
)
from optmerge.merging.merge import iter_merged
from optmerge.merging.recipe import Recipe
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family

RECIPE = "recipe.yaml"
CARD = "README.md"
BODY = "body"
_SLACK = 64 * 2**20  # bytes kept free beside the tensors: tokenizer, config, card


@dataclass(frozen=True, slots=True)
class CheckpointExporter(Exporter):
    """The merged model as a folder (or folders) for ``from_pretrained``.

    Attributes:
        shard_bytes: Most bytes of tensors in one file.
    """

    shard_bytes: int = SHARD_BYTES

    name: ClassVar[str] = "checkpoint"
    summary: ClassVar[str] = "a transformers checkpoint with config, tokenizer, model card and the recipe"

    def can_express(self, recipe: Recipe, family: Family | None) -> str | None:
        """Every recipe whose coefficients are static and whose experts' names can be folder names."""
        if not recipe.coefficient_fn.static:
            return "The recipe's coefficients depend on the input, so there is no one checkpoint that holds the merge."
        if recipe.heads == "own":
            for expert in recipe.experts:
                if expert in (BODY, CARD, RECIPE, ".", "..") or Path(expert).name != expert:
                    return (
                        f"The expert's name {expert!r} cannot be the name of its folder in a checkpoint that has one "
                        "folder per expert. Rename the expert in the recipe, or export the coefficients."
                    )
        return None

    def export(
        self,
        recipe: Recipe,
        family: Family | None,
        to: Path,
        *,
        result: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write the folder ``to``; see `Exporter.export`."""
        require_new_folder(to)
        require_expressible(self, recipe, family)
        assert family is not None, "needs_models"
        plans = plan_checkpoint(recipe, family)
        total = sum(plan.written_bytes for plan in plans)
        _require_space(to, total)
        meter = _Meter(total, progress)
        with atomic_directory(to) as folder:
            for plan in plans:
                (folder / plan.folder).mkdir(exist_ok=True)
                self._write_tensors(recipe, family, plan, folder, meter)
                write_config(plan.config_of, folder / plan.folder, dtype=recipe.dtype, architecture=plan.architecture)
                copy_tokenizer(family.checkpoint(recipe.tokenizer), family.base, folder / plan.folder)
            outside_recipe(recipe, family).save(folder / RECIPE)
            card = model_card(recipe, family, result=result, folders=[p.folder for p in plans if p.folder])
            (folder / CARD).write_text(card, encoding="utf-8")
        return to

    def _write_tensors(
        self, recipe: Recipe, family: Family, plan: FolderPlan, root: Path, meter: Callable[[int], None]
    ) -> None:
        """Write one folder's tensors; a body that an earlier folder holds already is linked instead."""
        folder = root / plan.folder
        if plan.body_from is None:
            with ShardedWriter(folder, plan.specs, shard_bytes=self.shard_bytes, wrote=meter) as writer:
                for name, tensor in plan.tensors(recipe, family):
                    writer.write(name, tensor)
            return
        own = ShardedWriter(folder, plan.own, shard_bytes=self.shard_bytes, wrote=meter)
        body = ShardedWriter(root / plan.body_from, plan.body, shard_bytes=self.shard_bytes)  # only its names
        count = len(body.shards) + (len(own.shards) if plan.own else 0)
        files = []
        for index, (file, specs) in enumerate(body.shards):
            files.append((shard_name(index, count), specs))
            _link(root / plan.body_from / file, folder / files[-1][0])
        if plan.own:
            with own:
                for name, tensor in plan.read(plan.own):
                    own.write(name, tensor)
            (folder / INDEX).unlink(missing_ok=True)  # of the own tensors alone; the whole one follows
            renamed = [shard_name(len(body.shards) + index, count) for index in range(len(own.shards))]
            for (file, specs), name in reversed(list(zip(own.shards, renamed, strict=True))):
                (folder / file).rename(folder / name)
                files.insert(len(body.shards), (name, specs))
        if count > 1:
            (folder / INDEX).write_text(index_json(files), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """What one folder of the checkpoint holds.

    Attributes:
        folder: Its name below the exported folder; empty for the folder itself.
        config_of: Whose config.json it carries.
        architecture: The class name that the config gets; None keeps its own.
        naming: Whose tensor names it uses: "base" or an expert.
        body: The merged tensors and the base's buffers, in the order in which they are made.
        own: Tensors that are not merged and come from ``config_of`` as they are: heads, and what no parameter takes.
        body_from: An earlier folder that holds the same body under the same names.
    """

    folder: str
    config_of: Checkpoint
    architecture: str | None
    naming: str
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

    def tensors(self, recipe: Recipe, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, in the order of ``specs``, in its final type."""
        wide, narrow = self._sides()
        yield from self.read(wide)
        yield from _merged_on_disk(recipe, family, self.naming)
        yield from self.read(narrow)

    def read(self, specs: list[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors of ``own``, in their final type."""
        for spec in specs:
            yield spec.name, self.config_of.read(spec.name).to(spec.dtype, copy=True)  # never a mapped one

    def _sides(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        width = min(spec.dtype.itemsize for spec in self.body)
        return [s for s in self.own if s.dtype.itemsize > width], [s for s in self.own if s.dtype.itemsize <= width]


def plan_checkpoint(recipe: Recipe, family: Family) -> list[FolderPlan]:
    """The folders of a recipe's checkpoint: one, or the body's and one per expert."""
    dtype = torch_dtype(recipe.dtype)
    if recipe.heads == "merged":
        body = _body_specs(family, "base", dtype)
        return [FolderPlan("", family.base, None, "base", body, _own_specs(family.base, body, dtype))]
    bodies = {name: _body_specs(family, name, dtype) for name in family.experts}
    first = next(iter(bodies))
    naming = first if all(body == bodies[first] for body in bodies.values()) else "base"
    body = _body_specs(family, naming, dtype)
    plans = [FolderPlan(BODY, family.base, auto_model_class(family.base), naming, body, [])]
    for name, checkpoint in family.experts.items():
        same = bodies[name] == body
        own = _own_specs(checkpoint, bodies[name], dtype)
        plans.append(FolderPlan(name, checkpoint, None, name, bodies[name], own, BODY if same else None))
    return plans


def merged_tensors(recipe: Recipe, family: Family) -> dict[str, torch.Tensor]:
    """The merged model's tensors by the base's names on disk, cast to the recipe's dtype.

    With own heads these are the body's; with a merged head also what the base has on disk and no parameter takes.
    """
    dtype = torch_dtype(recipe.dtype)
    body = _body_specs(family, "base", dtype)
    own = _own_specs(family.base, body, dtype) if recipe.heads == "merged" else []
    return dict(FolderPlan("", family.base, None, "base", body, own).tensors(recipe, family))


def torch_dtype(name: str) -> torch.dtype:
    """``float32`` and the like as a torch dtype."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _completed_by(family: Family, naming: str) -> dict[str, list[str]]:
    """Merged parameter -> the disk tensors whose last piece it is, in module order."""
    position = {parameter: index for index, parameter in enumerate(family.parameters)}
    layout = family.maps[naming]
    completed: dict[str, list[str]] = {parameter: [] for parameter in family.parameters}
    for parameter in family.parameters:
        for disk in layout.disk_names(parameter):
            if parameter == max(layout.parameters_of(disk), key=lambda owner: position.get(owner, -1)):
                completed[parameter].append(disk)
    return completed


def _merged_on_disk(recipe: Recipe, family: Family, naming: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The merged tensors under one checkpoint's names and layout, cast once to the recipe's dtype."""
    layout = family.maps[naming]
    dtype = torch_dtype(recipe.dtype)
    for buffer, spec in _body_buffers(family, naming, dtype):
        yield spec.name, family.maps["base"].read(family.base, buffer).to(spec.dtype, copy=True)
    completed = _completed_by(family, naming)
    waiting: dict[str, torch.Tensor] = {}  # parameters that share a disk tensor with one that is not merged yet
    written: set[str] = set()
    for parameter, merged in iter_merged(recipe, family):
        waiting[parameter] = merged
        for disk in completed[parameter]:
            owners = layout.parameters_of(disk)
            values = {
                owner: waiting[owner] if owner in waiting else layout.read(family.checkpoint(naming), owner)
                for owner in owners
            }
            yield disk, layout.disk_tensor(disk, values).to(dtype)
            written.add(disk)
            for owner in owners:
                if written.issuperset(layout.disk_names(owner)):
                    waiting.pop(owner, None)


def _body_specs(family: Family, naming: str, dtype: torch.dtype) -> list[TensorSpec]:
    tensors = family.checkpoint(naming).tensors
    return [spec for _, spec in _body_buffers(family, naming, dtype)] + [
        TensorSpec(disk, tuple(tensors[disk].shape), dtype)
        for disks in _completed_by(family, naming).values()
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


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


def _require_space(to: Path, needed: int) -> None:
    existing = next(parent for parent in [to, *to.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _SLACK:
        raise RunError(
            f"The merged checkpoint takes {needed / 1e9:.2f} GB and the disk of {to} has {free / 1e9:.2f} GB free. "
            "Free some space, or choose another place."
        )


class _Meter:
    """Adds up bytes and reports them."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress

    def __call__(self, written: int) -> None:
        self.done += written
        if self.progress:
            self.progress("export", self.done, self.total)
