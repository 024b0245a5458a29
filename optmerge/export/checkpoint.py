"""A transformers checkpoint, streamed: a few chunks of the merged model in memory at a time, whatever its size.

With one merged head the folder is the checkpoint. With a head per expert it holds ``body/`` (for ``AutoModel``) and
one folder per expert (for the expert's own Auto class, with its head and label names); the merged body's file is stored
once and hard-linked into each of them where the disk can.

    CheckpointExporter().export(recipe, family, Path("merged"))
    CheckpointExporter(verify=True).write(recipe, family, Path("merged")).digests
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from optmerge.atomic import atomic_directory, sync_directory
from optmerge.errors import RunError
from optmerge.export.base import Exporter, require_expressible, require_new_folder
from optmerge.export.card import model_card
from optmerge.export.companions import CONFIG, config_file, tokenizer_files
from optmerge.export.evidence import PROVENANCE, Evidence, provenance
from optmerge.export.folders import BODY, FolderPlan, plan_base, plan_folders
from optmerge.export.licence import CARD
from optmerge.export.merged import TensorSink
from optmerge.export.mergekit import CONFIG_FILE, choose_program, mergekit_config
from optmerge.export.references import outside_recipe
from optmerge.export.safetensors_writer import (
    INDEX,
    SHARD_BYTES,
    ShardedWriter,
    TensorSpec,
    index_json,
    named_shards,
    shard_name,
)
from optmerge.export.verify import digest_of, verify
from optmerge.merging.merge import Merge
from optmerge.merging.recipe import Recipe
from optmerge.models.mapped import SafetensorsFile
from optmerge.models.vocabulary import check_numbering
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.family import Family

RECIPE = "recipe.yaml"
_HIDDEN = ".part"  # ends a name under which nobody looks for the file
_SLACK = 64 * 2**20  # bytes kept free beside the tensors: tokenizer, config, card


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint on disk.

    Attributes:
        folder: Where it is.
        dtype: The type of its merged tensors.
        nbytes: Bytes of its tensors, those that several folders share counted once.
        digests: Path below it -> SHA-256 of the file; empty when nothing was verified.
    """

    folder: Path
    dtype: str
    nbytes: int
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CheckpointExporter(Exporter):
    """The merged model as a folder (or folders) for ``from_pretrained``.

    Attributes:
        shard_bytes: Most bytes of tensors in one file.
        verify: Read everything again before the folder appears, and compare it with what was written.
    """

    shard_bytes: int = SHARD_BYTES
    verify: bool = False

    name: ClassVar[str] = "checkpoint"
    summary: ClassVar[str] = "a transformers checkpoint with config, tokenizer, model card, recipe and manifest"

    def can_express(self, recipe: Recipe, family: Family | None) -> str | None:
        """Every recipe whose coefficients are static and whose experts' names can be folder names."""
        if not recipe.coefficient_fn.static:
            return "The recipe's coefficients depend on the input, so there is no one checkpoint that holds the merge."
        if recipe.heads == "own":
            for expert in recipe.experts:
                if expert in (BODY, CARD, RECIPE, PROVENANCE, CONFIG_FILE, ".", "..") or Path(expert).name != expert:
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
        evidence: Evidence | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write the folder ``to``; see `Exporter.export`."""
        return self.write(recipe, family, to, evidence=evidence, progress=progress).folder

    def write(
        self,
        recipe: Recipe,
        family: Family | None,
        to: Path,
        *,
        evidence: Evidence | None = None,
        progress: Progress | None = None,
    ) -> Written:
        """`export`, with what is known about the written files.

        Raises:
            ModelError: A weight file changed since it was opened.
            RecipeError: The recipe does not fit its models.
            ExportError: See `Exporter.export`.
            RunError: The disk refuses, or what was written does not read back.
        """
        require_new_folder(to)
        require_expressible(self, recipe, family)
        assert family is not None, "needs_models"
        check_numbering(family.checkpoint(recipe.tokenizer), recipe.tokenizer)
        merge = Merge(recipe, family)
        plans = plan_folders(recipe, family)
        total = sum(plan.written_bytes for plan in plans)
        _require_space(to, total)
        _require_whole_sources(family)
        with atomic_directory(to) as folder:
            job = _Job(folder, self, _Meter(total, progress))
            tokenizer = tokenizer_files(family.checkpoint(recipe.tokenizer), family.base)
            for plan in plans:
                job.write_folder(plan, merge)
                job.put(plan.folder, tokenizer)
            job.put("", _documents(recipe, family, [plan.folder for plan in plans if plan.folder], evidence))
            for plan in plans:
                config = config_file(plan.config_of, dtype=recipe.dtype, architecture=plan.architecture)
                job.put(plan.folder, {CONFIG + _HIDDEN: config[CONFIG]})
            sync_directory(folder)  # here, where it may take its time
            if self.verify:
                verify(folder, job.digests, job.shards, progress=progress)
            for plan in plans:  # last: without its config a folder that was left behind does not load
                job.reveal(Path(plan.folder, CONFIG))
        return Written(to, recipe.dtype, total, job.digests if self.verify else {})


def _documents(recipe: Recipe, family: Family, folders: list[str], evidence: Evidence | None) -> dict[str, bytes]:
    """What tells people and programs about the checkpoint: file name -> content."""
    files = outside_recipe(recipe, family).files(RECIPE)
    files[PROVENANCE] = provenance(files[RECIPE], evidence)
    choice = choose_program(recipe, family)
    if choice.program is not None:
        files[CONFIG_FILE] = mergekit_config(recipe, family).encode()
    reason = "" if choice.program else choice.reason
    card = model_card(recipe, family, evidence=evidence, folders=folders, not_mergekit=reason)
    return {**files, CARD: card.encode()}


def merged_tensors(recipe: Recipe, family: Family) -> dict[str, torch.Tensor]:
    """The merged model's tensors by the base's names on disk, cast to the recipe's dtype.

    With own heads these are the body's; with a merged head also what the base has on disk and no parameter takes.
    """
    plan = plan_base(recipe, family)
    sink = TensorSink(plan.specs)
    plan.stream(Merge(recipe, family), sink)
    return sink.tensors


class _Job:
    """One folder while it is filled, and what is known of its files.

    Attributes:
        digests: Path below the folder -> SHA-256 of what was written; only kept for a verification.
        shards: Path below the folder -> the tensors that it should hold.
    """

    def __init__(self, root: Path, exporter: CheckpointExporter, meter: _Meter) -> None:
        self.root = root
        self.shard_bytes = exporter.shard_bytes
        self.hashed = exporter.verify
        self.meter = meter
        self.digests: dict[str, str] = {}
        self.shards: dict[str, list[TensorSpec]] = {}

    def put(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write small files: path below the folder -> content."""
        for name, content in files.items():
            path = Path(folder, name)
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(content)
            if self.hashed:
                self.digests[path.as_posix()] = digest_of(content)

    def reveal(self, path: Path) -> None:
        """Give a file that was put under a hidden name the one that it is known by."""
        hidden = path.with_name(path.name + _HIDDEN)
        (self.root / hidden).replace(self.root / path)
        if self.hashed:
            self.digests[path.as_posix()] = self.digests.pop(hidden.as_posix())

    def write_folder(self, plan: FolderPlan, merge: Merge) -> None:
        """Write one folder's tensors; a body that an earlier folder holds already is linked instead."""
        folder = Path(plan.folder)
        (self.root / folder).mkdir(exist_ok=True)
        if plan.body_from is None:
            with self._writer(folder, plan.specs) as writer:
                plan.stream(merge, writer)
            files = writer.shards
            self._note(folder, writer, [file for file, _ in files])
        else:
            files = self._write_beside_body(plan)
        if len(files) > 1:
            self.put(plan.folder, {INDEX: index_json(files).encode()})

    def _write_beside_body(self, plan: FolderPlan) -> list[tuple[str, list[TensorSpec]]]:
        assert plan.body_from is not None
        body = named_shards(plan.body, self.shard_bytes)
        own = self._writer(Path(plan.folder), plan.own)
        count = len(body) + (len(own.shards) if plan.own else 0)
        files = []
        for index, (file, specs) in enumerate(body):
            source, target = Path(plan.body_from, file), Path(plan.folder, shard_name(index, count))
            _link(self.root / source, self.root / target)
            files.append((target.name, specs))
            self.shards[target.as_posix()] = specs
            if self.hashed:
                self.digests[target.as_posix()] = self.digests[source.as_posix()]
        if plan.own:
            with own:
                plan.stream_own(plan.own, own)
            names = [shard_name(len(body) + index, count) for index in range(len(own.shards))]
            for (file, specs), name in reversed(list(zip(own.shards, names, strict=True))):
                (self.root / plan.folder / file).rename(self.root / plan.folder / name)
                files.insert(len(body), (name, specs))
            self._note(Path(plan.folder), own, names)
        return files

    def _writer(self, folder: Path, specs: list[TensorSpec]) -> ShardedWriter:
        return ShardedWriter(
            self.root / folder, specs, shard_bytes=self.shard_bytes, hashed=self.hashed, wrote=self.meter
        )

    def _note(self, folder: Path, writer: ShardedWriter, names: list[str]) -> None:
        """Remember a writer's files under the names that they have now."""
        for (file, specs), name in zip(writer.shards, names, strict=True):
            self.shards[(folder / name).as_posix()] = specs
            if self.hashed:
                self.digests[(folder / name).as_posix()] = writer.digests[file]


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


def _require_whole_sources(family: Family) -> None:
    """Compare the length of every weight file with its header once more: one cut short would kill the process.

    Raises:
        ModelError: A file was truncated or removed since it was opened.
    """
    for path in dict.fromkeys(path for who in ("base", *family.experts) for path in family.checkpoint(who).sources):
        if path.suffix == ".safetensors":
            SafetensorsFile(path)


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
