"""A merge outside the search: a recipe bound to its models, whose values are made piece by piece.

merge = Merge(recipe, family)
for segment in merge.segments("model.embed_tokens.weight"):
    for part in cut(segment, 1 << 20):
        merge.write(out[: part.base.numel()].view(part.base.shape), "model.embed_tokens.weight", part)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from optmerge.errors import RecipeError, did_you_mean
from optmerge.merging.coefficients import Table
from optmerge.merging.deltas import Deltas
from optmerge.merging.directions import require_usable, with_hash
from optmerge.merging.recipe import EVERYTHING, ModelEntry, Recipe
from optmerge.merging.sliced import write_sliced
from optmerge.merging.slices import Cut
from optmerge.merging.sources import LowRank, Segment, Source
from optmerge.merging.writing import LOW_RANK_CHUNK, Workspace, write_merge
from optmerge.models.device import pick_dtype

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family


@dataclass(frozen=True)
class Rows:
    """Where a recipe's coefficients belong.

    Attributes:
        group: Merged parameter -> number of its group.
        first: Merged parameter -> its row of the coefficients, or the first of its rows.
        cuts: Merged parameter -> how it is cut, for those that are.
    """

    group: Mapping[str, int]
    first: Mapping[str, int]
    cuts: Mapping[str, Cut]


def rows_of_parameters(recipe: Recipe, family: Family) -> Rows:
    """Find each merged parameter's rows of the recipe's coefficients.

    A group of the tensors "*" has every parameter that no other group names.

    Raises:
        RecipeError: A tensor is unknown to the base, a parameter is in two groups, or a parameter is in none; or a
            group with slices is not one parameter of the size that is cut.
    """
    owner: dict[str, int] = {}
    known = [name for parameter in family.parameters for name in family.disk_names(parameter)]
    known_set = set(known)
    rest = None
    for number, group in enumerate(recipe.groups):
        for tensor in group.tensors:
            if tensor == EVERYTHING:
                rest = number
                continue
            if tensor not in known_set:
                raise RecipeError(
                    f"The recipe's group {group.name} names the tensor {tensor}, which the base "
                    f"{recipe.base.reference} does not have among its merged tensors.{did_you_mean(tensor, known)}"
                )
            parameter = family.parameter_of(tensor)
            if owner.setdefault(parameter, number) != number:
                raise RecipeError(
                    f"The recipe puts parts of the parameter {parameter} into the groups "
                    f"{recipe.groups[owner[parameter]].name} and {group.name}; all of it must be in one."
                )
    if rest is not None:
        owner |= {parameter: rest for parameter in family.parameters if parameter not in owner}
    missing = [parameter for parameter in family.parameters if parameter not in owner]
    if missing:
        raise RecipeError(
            f"The recipe has no coefficient for {len(missing)} of the model's {len(family.parameters)} parameters: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    starts = [at.start for at in recipe.rows]
    cuts = {parameter: cut for parameter, number in owner.items() if (cut := recipe.groups[number].cut) is not None}
    for parameter, cut in cuts.items():
        group = recipe.groups[owner[parameter]]
        members = [other for other, number in owner.items() if number == owner[parameter]]
        if len(members) > 1 or cut.numel != family.parameters[parameter].numel:
            raise RecipeError(
                f"The recipe cuts the group {group.name} into {cut.count} slices of {cut.numel} elements, and it "
                f"has {', '.join(f'{name} ({family.parameters[name].numel})' for name in members[:3])}; a group with "
                "slices is one parameter of that size. Use the recipe with the models that it was made for."
            )
    return Rows(owner, {parameter: starts[number] for parameter, number in owner.items()}, cuts)


def completed(recipe: Recipe, family: Family) -> Recipe:
    """The recipe with all that it leaves to its models: tensor names for "*", heads, dtype and content hashes.

    Raises:
        RecipeError: See `rows_of_parameters`.
    """
    owner = rows_of_parameters(recipe, family).group
    groups = list(recipe.groups)
    for number, group in enumerate(groups):
        if EVERYTHING in group.tensors:
            mine = [parameter for parameter in family.parameters if owner[parameter] == number]
            groups[number] = replace(group, tensors=tuple(disk for name in mine for disk in family.disk_names(name)))
    return replace(
        recipe,
        base=_hashed(recipe.base, family.base),
        experts={name: _hashed(entry, family.experts[name]) for name, entry in recipe.experts.items()},
        directions=tuple(map(with_hash, recipe.directions)),
        groups=tuple(groups),
        heads=family.heads,
        dtype=str(pick_dtype("auto", family)).removeprefix("torch.") if recipe.dtype == "auto" else recipe.dtype,
    )


def _hashed(entry: ModelEntry, checkpoint: Checkpoint) -> ModelEntry:
    return entry if entry.sha256 else replace(entry, sha256=checkpoint.sha256())


class Merge:
    """A recipe bound to its family: the merged values of any part of any parameter.

    Memory is one parameter's delta for each direction that is a whole method, and nothing for the others.

    Raises:
        RecipeError: The recipe does not fit the family.
        ConfigError: A user's method cannot be used, or is not what the recipe was made with.
    """

    def __init__(self, recipe: Recipe, family: Family) -> None:
        self.family = family
        self._rows = rows_of_parameters(recipe, family)
        table = recipe.coefficient_fn()
        used = [column for column in range(len(recipe.directions)) if table[:, column].any()]
        self._table = table[:, used]
        directions = [recipe.directions[column] for column in used]
        require_usable(directions, list(family.experts))
        self._directions = directions
        self._deltas = Deltas(family, directions, cache=None)
        wide = any(parameter.dtype == torch.float64 for parameter in family.parameters.values())
        self._workspace = Workspace(torch.device("cpu"), torch.float64 if wide else torch.float32)

    def segments(self, parameter: str) -> list[Segment]:
        """The boxes that make up a parameter, each with what is added to it."""
        columns = zip(self._directions, self._part(parameter).T, strict=True)
        unused = [direction.name for direction, column in columns if not column.any()]
        segments = self._deltas.segments(parameter, unused)
        row = self._row(parameter)
        return segments if row is None else [_made_whole(segment, row) for segment in segments]

    def write(self, out: torch.Tensor, parameter: str, segment: Segment) -> None:
        """Merge a segment, or a part of one, into ``out``.

        Args:
            out: Contiguous, of the segment's shape; the one cast is to its type.
            parameter: Whose segment it is.
            segment: One of `segments`, or a part of it.
        """
        row = self._row(parameter)
        if row is not None:
            write_merge(out, segment, row, self._workspace)
            return
        table = self._part(parameter)
        values = [torch.from_numpy(column).to(self._workspace.dtype) if column.any() else None for column in table.T]
        write_sliced(out, segment, self._rows.cuts[parameter], values, self._workspace)

    def _row(self, parameter: str) -> list[float] | None:
        """The coefficients of all of a parameter; None where its slices have different ones."""
        part = self._part(parameter)
        return part[0].tolist() if (part == part[0]).all() else None

    def _part(self, parameter: str) -> Table:
        first, own = self._rows.first[parameter], self._rows.cuts.get(parameter)
        return self._table[first : first + (1 if own is None else own.count)]


def cut(segment: Segment, most: int) -> Iterator[Segment]:
    """Parts of a segment, which follow one another in its row-major order.

    Args:
        segment: What to cut.
        most: Elements of a part. With a low-rank source a part has as many rows as `write_merge` multiplies at a time
            instead (and at least one), since the last bits of a product depend on its shape.
    """
    low_rank = any(isinstance(source, LowRank) for source in segment.sources)
    limit = LOW_RANK_CHUNK if low_rank else most
    numel = segment.base.numel()
    if numel <= limit:
        if numel:
            yield segment
        return
    rows = segment.base.shape[0]
    if rows == 1:
        if low_rank:
            yield segment
        else:
            yield from cut(_row(segment), most)
        return
    step = max(1, limit * rows // numel)
    for lo in range(0, rows, step):
        part = segment.rows(lo, min(lo + step, rows))
        if part.base.numel() > limit and not low_rank:
            yield from cut(part, most)
        else:
            yield part


def _row(segment: Segment) -> Segment:
    """A segment of one row as that row; dense sources only."""
    sources = tuple(
        Source(source.tensor[0], source.absolute) if isinstance(source, Source) else None for source in segment.sources
    )
    return replace(segment, base=segment.base[0], sources=sources, strides=segment.strides[1:])


def _made_whole(segment: Segment, row: Sequence[float]) -> Segment:
    """The segment with a low-rank source that `write_merge` copies made dense once, not once for every part."""
    active = [column for column, source in enumerate(segment.sources) if source is not None and row[column]]
    if len(active) != 1 or row[active[0]] != 1.0:
        return segment
    sources = list(segment.sources)
    source = sources[active[0]]
    if isinstance(source, LowRank):
        sources[active[0]] = Source(source.exact(), absolute=True)
    return replace(segment, sources=tuple(sources))
