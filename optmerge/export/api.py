"""The two functions behind ``optmerge merge`` and ``optmerge export``.

A recipe is given as a value, as its file, or as the folder of a run.

    tensors = merge("runs/first/recipe.yaml")                            # dict of tensors by name on disk
    folder = merge("runs/first/recipe.yaml", Path("merged"))             # a checkpoint
    write_checkpoint("recipe.yaml", Path("merged"), verify=True).digests      # the same, read again and compared
    export("runs/first", "coefficients", Path("coefficients.csv"))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

from optmerge.errors import ExportError, RecipeError, did_you_mean
from optmerge.export import EXPORTERS
from optmerge.export.base import require_new_folder
from optmerge.export.checkpoint import CheckpointExporter, Written, merged_tensors
from optmerge.export.evidence import Evidence
from optmerge.export.front import Pick, pick
from optmerge.merging.merge import completed
from optmerge.merging.recipe import Recipe, open_recipe
from optmerge.records import Progress

if TYPE_CHECKING:
    from torch import Tensor


@overload
def merge(
    recipe: Recipe | Path | str,
    to: None = None,
    *,
    relative_to: Path | None = None,
    check_hashes: bool = True,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor]: ...


@overload
def merge(
    recipe: Recipe | Path | str,
    to: Path | str,
    *,
    relative_to: Path | None = None,
    check_hashes: bool = True,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Path: ...


def merge(
    recipe: Recipe | Path | str,
    to: Path | str | None = None,
    *,
    relative_to: Path | None = None,
    check_hashes: bool = True,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor] | Path:
    """Make the merged model of a recipe.

    Args:
        recipe: A recipe, its file, or the folder of a run (its best recipe).
        to: Where the checkpoint goes, an absent or empty folder; None gives the tensors instead.
        relative_to: Where the recipe's relative model paths start; default its file's folder, or the working directory.
        check_hashes: Refuse models whose content differs from the recipe's hashes.
        allow_pickle: Read pickle-only checkpoints, which can run code.
        progress: Told how many bytes are written.

    Returns:
        The folder, or the tensors by the base's names on disk in the recipe's dtype (with a head per expert: the
        body's).

    Raises:
        RecipeError: The recipe is missing, malformed or does not fit its models.
        ModelError: A model is missing, damaged or does not fit the others.
        ExportError: ``to`` is taken.
        RunError: The disk refuses.
    """
    if to is not None:
        return write_checkpoint(
            recipe,
            to,
            relative_to=relative_to,
            check_hashes=check_hashes,
            allow_pickle=allow_pickle,
            progress=progress,
        ).folder
    loaded, start, _ = _load(recipe, relative_to)
    family = open_recipe(loaded, relative_to=start, check_hashes=check_hashes, allow_pickle=allow_pickle)
    return merged_tensors(completed(loaded, family), family)


def write_checkpoint(
    recipe: Recipe | Path | str,
    to: Path | str,
    *,
    dtype: str | None = None,
    verify: bool = False,
    relative_to: Path | None = None,
    check_hashes: bool = True,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Written:
    """`merge` into a folder, with what is known about the written files.

    Args:
        recipe: See `merge`.
        to: See `merge`.
        dtype: Of the tensors; None is the recipe's.
        verify: Read everything again before the folder appears, and compare it with what was written.
        relative_to: See `merge`.
        check_hashes: See `merge`.
        allow_pickle: See `merge`.
        progress: See `merge`.

    Raises:
        RunError: The disk refuses, or what was written does not read back; see `merge` for the others.
    """
    require_new_folder(Path(to))  # before models are opened, which may take a while
    loaded, start, evidence = _load(recipe, relative_to)
    if dtype is not None:
        loaded = replace(loaded, dtype=dtype)
    family = open_recipe(loaded, relative_to=start, check_hashes=check_hashes, allow_pickle=allow_pickle)
    exporter = CheckpointExporter(verify=verify)
    return exporter.write(completed(loaded, family), family, Path(to), evidence=evidence, progress=progress)


def export(
    recipe: Recipe | Path | str,
    format: str,
    to: Path | str,
    *,
    weights: Mapping[str, float] | None = None,
    relative_to: Path | None = None,
    check_hashes: bool = True,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a recipe in one of the formats of `EXPORTERS`.

    Args:
        recipe: A recipe, its file, or the folder of a run (its best recipe, with its scores).
        format: ``checkpoint``, ``mergekit`` or ``coefficients``.
        to: The folder or file to write; nothing is overwritten.
        weights: Task -> how much it matters: instead of the best recipe of a run, that of its front with the lowest
            weighted sum of select values (`optmerge.export.front.pick`).
        relative_to: See `merge`.
        check_hashes: See `merge`.
        allow_pickle: See `merge`.
        progress: See `merge`.

    Returns:
        What was written.

    Raises:
        ExportError: The format is unknown or cannot express the recipe (the message says what can), or ``to`` is taken.
        RecipeError: See `merge`.
        ModelError: See `merge`.
        ConfigError: The weights fit no front.
        RunError: The disk refuses, or there is no front.
    """
    if format not in EXPORTERS:
        raise ExportError(
            f"There is no export format {format!r}; the formats are {', '.join(EXPORTERS)}."
            + did_you_mean(format, EXPORTERS)
        )
    if weights is None:
        loaded, start, evidence = _load(recipe, relative_to)
    else:
        if isinstance(recipe, Recipe):
            raise ExportError("Weights pick a recipe from a run's front; give the folder of a run.")
        picked = pick(Path(recipe), weights)
        (loaded, start, _), evidence = _load(picked.recipe, relative_to), _evidence_of(picked, Path(recipe))
    exporter = EXPORTERS[format]()
    family = None
    if exporter.needs_models:
        family = open_recipe(loaded, relative_to=start, check_hashes=check_hashes, allow_pickle=allow_pickle)
        loaded = completed(loaded, family)
    return exporter.export(loaded, family, Path(to), evidence=evidence, progress=progress)


def _evidence_of(picked: Pick, run: Path) -> Evidence:
    """The run's evidence with the scores of another merge of its front; the answer is about the run's own."""
    known = Evidence.of_run(run)
    return replace(known, result=picked.result, answer="") if known else Evidence(picked.result)


def _load(recipe: Recipe | Path | str, relative_to: Path | None) -> tuple[Recipe, Path, Evidence | None]:
    """The recipe, where its relative paths start, and what is known of it if it lies in a run."""
    if isinstance(recipe, Recipe):
        return recipe, relative_to or Path(), None
    path = Path(recipe)
    if path.is_dir():
        path = path / "recipe.yaml"
        if not path.exists():
            raise RecipeError(f"{path.parent} holds no recipe.yaml: the run has no result yet, or this is no run.")
    loaded = Recipe.load(path)
    return loaded, relative_to or path.parent, Evidence.of_run(path.parent)
