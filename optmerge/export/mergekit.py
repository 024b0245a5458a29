"""A mergekit config that makes the same merge, tensor by tensor, bit for bit in float32 (of up to four experts).

mergekit-yaml writes a whole model but handles only the architectures that it has definitions for, and silently drops
tensors of others; mergekit-pytorch merges any files by the names in them, and writes weights only. The config is for
the first where `mergekit_layouts` knows that it is exact, else for the second; its first lines say how to run it.

    MergekitExporter().export(recipe, family, Path("mergekit_config.yml"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import yaml

from optmerge.atomic import atomic_write
from optmerge.export.base import Exporter, require_expressible, require_new_file
from optmerge.export.coefficients import coefficient_table
from optmerge.export.companions import read_config
from optmerge.export.evidence import Evidence
from optmerge.export.mergekit_layouts import LAYOUTS
from optmerge.export.references import OutsideReference, outside_reference
from optmerge.merging.recipe import Recipe
from optmerge.models.aligned import AlignedCheckpoint
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family

MERGEKIT = "0.1.5"
CONFIG_FILE = "mergekit_config.yml"  # the name by which the Hub knows it
SUFFIXES = (".yml", ".yaml")
IN_ORDER = 4  # models that torch.sum, which mergekit uses, adds one after the other; of more it makes partial sums
INSTEAD = "Export a checkpoint instead (--format checkpoint): it holds the same merge, ready to load."


@dataclass(frozen=True, slots=True)
class Choice:
    """Which mergekit program can make a merge.

    Attributes:
        program: None when neither can.
        reason: Why it is not mergekit-yaml, or why it is neither; empty for mergekit-yaml.
    """

    program: Literal["mergekit-yaml", "mergekit-pytorch"] | None
    reason: str = ""


class MergekitExporter(Exporter):
    """A config for ``mergekit-yaml``, or for ``mergekit-pytorch`` where the former loses tensors."""

    name: ClassVar[str] = "mergekit"
    summary: ClassVar[str] = f"a config that makes the same merge with mergekit {MERGEKIT}"

    def can_express(self, recipe: Recipe, family: Family | None) -> str | None:
        """Whether one of mergekit's programs can make this merge exactly."""
        assert family is not None, "needs_models"
        choice = choose_program(recipe, family)
        return None if choice.program else f"mergekit cannot make this merge: {choice.reason}. {INSTEAD}"

    def export(
        self,
        recipe: Recipe,
        family: Family | None,
        to: Path,
        *,
        evidence: Evidence | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write the config; see `Exporter.export`."""
        require_new_file(to, SUFFIXES)
        require_expressible(self, recipe, family)
        assert family is not None, "needs_models"
        atomic_write(to, mergekit_config(recipe, family, file_name=to.name))
        return to


def choose_program(recipe: Recipe, family: Family) -> Choice:
    """The mergekit program that makes this merge exactly, with the reason for it."""
    if reason := _beyond_mergekit(recipe, family):
        return Choice(None, reason)
    by_architecture = _misfit_of_mergekit_yaml(family)
    if by_architecture is None:
        return Choice("mergekit-yaml")
    by_file = _misfit_of_mergekit_pytorch(recipe, family)
    if by_file is None:
        return Choice("mergekit-pytorch", by_architecture)
    return Choice(None, f"mergekit-yaml is out because {by_architecture}; mergekit-pytorch is out because {by_file}")


def mergekit_config(recipe: Recipe, family: Family, *, file_name: str = CONFIG_FILE) -> str:
    """The config as YAML text, with a comment on how to run it.

    The recipe must be expressible (`choose_program`).
    """
    choice = choose_program(recipe, family)
    table = coefficient_table(recipe)
    base = _name(family.base, choice)
    wide = any(info.dtype == torch.float64 for info in family.base.tensors.values())
    models = []
    for direction in recipe.directions:
        reference = _name(family.experts[direction.name], choice)
        if reference != base:  # an expert that is the base has a delta of zero, and mergekit refuses to list it
            values = {tensor: row[direction.name] for tensor, row in table.items()}
            models.append({"model": reference, "parameters": {"weight": _filters(values, family.base)}})
    config = {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": models,
        "parameters": {"normalize": False, "lambda": 1.0, "rescale": False},
        "dtype": "float64" if wide else "float32",
        "out_dtype": recipe.dtype,
    }
    comment = "".join(f"# {line}\n" for line in _comment(recipe, family, choice, file_name))
    # Leaves stand on one line each; the representer writes floats by repr with a point, so that YAML reads them back.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's, where PyYAML has it, is nine times faster
    text = yaml.dump(config, Dumper=dumper, sort_keys=False, default_flow_style=None, width=10_000, allow_unicode=True)
    return f"{comment}{text}"


def _filters(values: Mapping[str, float], base: Checkpoint) -> list[dict[str, str | float]]:
    """One entry per tensor. A filter is a substring test and the first match wins, so longer names come first."""
    listed = {name: 0.0 for name in base.tensors} | dict(values)  # what is not merged keeps the base's value
    names = sorted(listed, key=lambda name: (-len(name), name))
    rules: list[dict[str, str | float]] = [{"filter": name, "value": listed[name]} for name in names]
    return [*rules, {"value": 0.0}]


def _beyond_mergekit(recipe: Recipe, family: Family) -> str | None:
    """What no mergekit program can do."""
    if not recipe.coefficient_fn.static:
        return "its coefficients depend on the input"
    sliced = [group for group in recipe.groups if group.cut is not None]
    if sliced:
        return (
            f"it has coefficients for {sliced[0].count} slices (columns, rows or chunks) of {sliced[0].name}, and "
            "mergekit takes one number per tensor and model"
        )
    methods = [direction.name for direction in recipe.directions if direction.kind != "expert"]
    if methods:
        return (
            f"its direction {methods[0]} is the delta of a method, none of the experts' task vectors, and "
            "mergekit has no way to weigh it per tensor"
        )
    if recipe.heads == "own":
        return (
            "each expert keeps a head of its own over one merged body, and mergekit writes one model whose tensors all "
            "of its inputs have"
        )
    aligned = [name for name, checkpoint in family.experts.items() if isinstance(checkpoint, AlignedCheckpoint)]
    if aligned:
        return (
            f"the vocabulary of {aligned[0]} is brought into the base's first, and mergekit has no rule that does that"
        )
    references = {name: outside_reference(checkpoint) for name, checkpoint in family.experts.items()}
    names = list(references)
    for index, name in enumerate(names):
        for other in names[:index]:
            if references[name] == references[other]:
                return f"the experts {other} and {name} are the same model, which mergekit refuses to list twice"
    return None


def _misfit_of_mergekit_yaml(family: Family) -> str | None:
    """Why mergekit-yaml would not merge every tensor; None when it does."""
    known: str | None = None
    for name, checkpoint in {"base": family.base, **family.experts}.items():
        architectures = read_config(checkpoint).get("architectures") or []
        if len(architectures) != 1:
            return f"the config of {name} does not name exactly one architecture"
        architecture = str(architectures[0])
        if known is not None and architecture != known:
            return f"{name} is a {architecture} and the base a {known}"
        known = architecture
        if architecture not in LAYOUTS:
            return f"it is not known to keep every tensor of a {architecture}"
        misfit = LAYOUTS[architecture].misfit(list(checkpoint.tensors), family.num_layers)
        if misfit:
            return f"for {name} ({architecture}) {misfit}"
        if set(checkpoint.tensors) != set(family.base.tensors):
            return f"base and {name} do not have the same tensors on disk"
    return None


def _misfit_of_mergekit_pytorch(recipe: Recipe, family: Family) -> str | None:
    """Why mergekit-pytorch cannot merge the files; None when it can."""
    for name, checkpoint in {"base": family.base, **family.experts}.items():
        if outside_reference(checkpoint).adapter:
            return f"{name} is an adapter, and it reads whole weights only"
        files = {info.file for info in checkpoint.tensors.values()}
        if len(files) != 1:
            return f"the weights of {name} are in {len(files)} files, and it reads one file per model"
        different = set(checkpoint.tensors) ^ set(family.base.tensors)
        if different:
            return f"base and {name} do not have the same tensors on disk ({sorted(different)[0]})"
    return None


def _name(checkpoint: Checkpoint, choice: Choice) -> str | dict[str, Any]:
    """A model as the program wants it: a reference, or a file."""
    if choice.program == "mergekit-pytorch":
        return str(next(iter(checkpoint.tensors.values())).file.absolute())
    reference = outside_reference(checkpoint)
    if any(sign in part for part in _sources(reference) for sign in "@+"):
        return _spelled_out(reference)  # in mergekit's short form these signs begin a revision or an adapter
    return str(reference)


def _sources(reference: OutsideReference) -> list[str]:
    return [reference.source, *(_sources(reference.adapter) if reference.adapter else [])]


def _spelled_out(reference: OutsideReference) -> dict[str, Any]:
    long: dict[str, Any] = {"model": {"path": reference.source, "revision": reference.revision}}
    if reference.adapter:
        long["lora"] = {"path": reference.adapter.source, "revision": reference.adapter.revision}
    return long


def _comment(recipe: Recipe, family: Family, choice: Choice, file_name: str) -> list[str]:
    lines = [f"Written by optmerge for mergekit {MERGEKIT}: the same merge as `optmerge merge`."]
    if len(family.experts) > IN_ORDER:
        lines.append(
            f"With more than {IN_ORDER} experts mergekit adds them up in another order: the last bit can differ."
        )
    adapters = [name for name, checkpoint in family.experts.items() if outside_reference(checkpoint).adapter]
    if choice.program == "mergekit-yaml":
        options = " --lora-merge-cache CACHE --lora-merge-dtype float32" if adapters else ""
        lines += [
            f"Run:  mergekit-yaml {file_name} FOLDER{options}",
            "mergekit copies config and tokenizer of the base; this recipe's tokenizer is that of "
            f"{recipe.tokenizer}{'' if recipe.tokenizer == 'base' else ': copy its files over them'}.",
        ]
    else:
        lines += [
            f"Run:  mergekit-pytorch {file_name} FOLDER",
            "It writes weights only: copy config.json and the tokenizer from the base.",
            f"This is not a config for mergekit-yaml, because {choice.reason}.",
        ]
    if adapters:
        lines.append(
            f"mergekit merges the adapters of {', '.join(adapters)} itself; the last digits may differ from optmerge's."
        )
    if any(row.max() == 1.0 and (row != 0.0).sum() == 1 for row in recipe.coefficients):
        lines.append(
            "Where one coefficient is 1 and the others 0 optmerge copies the expert; mergekit computes "
            "base + (expert - base), which can differ in the last bit."
        )
    return lines
