"""A search that starts from a recipe file: its coefficients in the search's groups and directions.

    start = start_from(Path("recipe.yaml"), family, space, searched, untouched)
    start.table, start.notes               # float64[G, D], and what the space could not take over

The recipe may be a search's, an import's, or written by hand. Its experts are known by what they are, whatever their
names. A group that holds tensors of several coefficients takes their mean, each element counting once, which is the
least squares over elements; then bounds, ties and frozen groups have their say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml

from optmerge.config.methods import METHOD_CONFIGS, CustomMethodConfig
from optmerge.config.spectral import DirectionConfig, SpectralConfig
from optmerge.errors import RecipeError
from optmerge.merging.coefficients import Table
from optmerge.merging.merge import Rows, rows_of_parameters
from optmerge.merging.recipe import Direction, ModelEntry, Recipe
from optmerge.merging.slices import Cut
from optmerge.models.reference import ModelReference

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family
    from optmerge.space.space import SearchSpace

FAMILY = "recipe"  # the baseline's, and its name
_MOST = 1 << 20  # elements at a time
_EXACT = 1e-9  # what counts as the same coefficient


@dataclass(frozen=True, eq=False)
class RecipeStart:
    """What a search makes of a recipe.

    Attributes:
        table: float64[G, D] over the searched directions; the space reaches it.
        notes: What a user should know of it: nothing where the start is the recipe's merge.
    """

    table: Table
    notes: tuple[str, ...]


def start_from(
    path: Path,
    family: Family,
    space: SearchSpace,
    searched: Sequence[Direction],
    untouched: Mapping[str, Collection[str]],
) -> RecipeStart:
    """The coefficients nearest to a recipe's that the space has.

    Args:
        path: The recipe's file.
        family: The search's models.
        space: Its search space.
        searched: The directions of the space's columns.
        untouched: Direction -> parameters where its delta is zero, so that its coefficient there is nobody's.

    Raises:
        RecipeError: The recipe is none, or of other models, heads or directions than are searched; or it is out of
            reach of a space whose coefficients sum to 1.
    """
    recipe = Recipe.load(path)
    if recipe.heads not in ("auto", family.heads):
        raise _refusal(
            path,
            f"has heads: {recipe.heads}, and this search has heads: {family.heads}. Write `heads: {recipe.heads}` "
            "into the search file, or start elsewhere",
        )
    experts = _experts(recipe, path, family)
    coefficients = recipe.coefficients
    used = np.flatnonzero(coefficients.any(axis=0)).tolist()
    columns = [_column(recipe.directions[column], experts, searched, path) for column in used]
    rows = rows_of_parameters(recipe, family)
    wanted = np.zeros((space.num_rows, len(searched)))
    spread = np.zeros_like(wanted)  # how far apart the recipe's coefficients within a row are from its mean
    for group, at in zip(space.groups, space.rows, strict=True):
        values = [_of_parameter(name, rows, coefficients[:, used], group.cut) for name in group.parameters]
        if group.cut is None:
            sizes = [float(family.parameters[name].numel) for name in group.parameters]
            mean = _mean(np.concatenate([each for each, _ in values]), np.array(sizes))
            off = [np.abs(each - mean)[0] + apart[0] for each, apart in values]
            wanted[at, columns], spread[at, columns] = mean, np.max(off, axis=0)
        else:
            wanted[at, columns], spread[at, columns] = values[0]
    start = _within(wanted, spread, space, searched, untouched, path)
    return replace(start, notes=_other_deltas(recipe, experts, family, path) + start.notes)


def _within(
    wanted: Table,
    spread: Table,
    space: SearchSpace,
    searched: Sequence[Direction],
    untouched: Mapping[str, Collection[str]],
    path: Path,
) -> RecipeStart:
    """What the space has nearest to ``wanted``, and how far that is from the recipe."""
    try:
        nearest = space.started_at(wanted).decode(space.encode(wanted))
    except ZeroDivisionError as problem:
        raise _refusal(path, f"is out of reach of this space, whose coefficients sum to 1 ({problem})") from None
    off = np.abs(nearest - wanted) + spread
    for column, direction in enumerate(searched):
        still = untouched.get(direction.name, ())
        for group, at in zip(space.groups, space.rows, strict=True):
            if all(name in still for name in group.parameters):
                off[at, column] = 0.0
    rows = np.flatnonzero((off > _EXACT).any(axis=1))
    if not rows.size:
        return RecipeStart(nearest, ())
    far = int(off.max(axis=1).argmax())
    group = next(group for group, at in zip(space.groups, space.rows, strict=True) if at.start <= far < at.stop)
    told = (
        f"space.start: this search space cannot say what {path} says: {rows.size} of its {space.num_rows} groups get "
        f"other coefficients, up to {float(off.max()):.3g} off (in {group.name}). The search starts from the nearest "
        "that it has: the mean over each group's elements, cut to the bounds."
    )
    return RecipeStart(nearest, (told,))


def _experts(recipe: Recipe, path: Path, family: Family) -> dict[str, str]:
    """The recipe's experts -> the search's that are the same models.

    Raises:
        RecipeError: The base is another; or an expert that has coefficients is none of the search's.
    """
    if not _same(recipe.base, family.base, path):
        raise _refusal(
            path, f"adds to the base {recipe.base.reference}, and this search to {family.base.reference}, another model"
        )
    found = {}
    table = recipe.coefficients
    needed = {d.expert for d, column in zip(recipe.directions, table.T, strict=True) if d.expert and column.any()}
    wholes = any(_is_joint(d) and column.any() for d, column in zip(recipe.directions, table.T, strict=True))
    for name, entry in recipe.experts.items():
        order = sorted(family.experts, key=lambda other: other != name)  # its namesake first
        mine = next((other for other in order if _same(entry, family.experts[other], path)), None)
        if mine is not None:
            found[name] = mine
        elif name in needed or wholes:
            raise _refusal(
                path,
                f"is made of the expert {name} ({entry.reference}), which is none of this search's: "
                + ", ".join(f"{other} ({checkpoint.reference})" for other, checkpoint in family.experts.items())
                + ". Add it to `experts`, or start from a recipe of these models",
            )
    extra = [name for name in family.experts if name not in found.values()]
    if wholes and extra:
        raise _refusal(
            path,
            f"has methods of {', '.join(recipe.experts)} together, and with {', '.join(extra)} beside them they are "
            f"others. Take {', '.join(extra)} out of `experts`, or start from a recipe of all",
        )
    return found


def _is_joint(direction: Direction) -> bool:
    """Whether a delta depends on who else is merged."""
    config = direction.config
    if direction.kind == "expert" or config is None:
        return False
    method = METHOD_CONFIGS[config.of] if isinstance(config, SpectralConfig) else type(config)
    return not (direction.expert and method.facts.alone)


def _other_deltas(recipe: Recipe, experts: Mapping[str, str], family: Family, path: Path) -> tuple[str, ...]:
    """What is to be known of methods that go by the experts' names or by their order."""
    used = [d for d, column in zip(recipe.directions, recipe.coefficients.T, strict=True) if column.any()]
    notes = []
    renamed = [f"{theirs} is {mine}" for theirs, mine in experts.items() if theirs != mine]
    drawn = sorted({d.config.name for d in used if d.config is not None and hasattr(d.config, "seed")})
    if renamed and drawn:
        notes.append(
            f"space.start: what {', '.join(drawn)} drops goes by the experts' names, which are others than in {path} "
            f"({', '.join(renamed)}). The coefficients are the recipe's, the dropped entries are others."
        )
    joint = sorted({d.config.name for d in used if d.config is not None and _is_joint(d)})
    if joint and [experts[name] for name in recipe.experts] != list(family.experts):
        notes.append(
            f"space.start: {path} has the experts in another order than this search, and so {', '.join(joint)} may be "
            "another merge here."
        )
    return tuple(notes)


def _same(entry: ModelEntry, checkpoint: Checkpoint, path: Path) -> bool:
    """Whether a recipe's entry is that model: by content where the recipe has its hash, else by reference."""
    if entry.sha256:
        return entry.sha256 == checkpoint.sha256()
    named = ModelReference.parse(entry.reference, relative_to=path.parent)
    if entry.revision and not named.revision:
        return f"{named.text}@{entry.revision}" in (checkpoint.reference, f"{named.text}@{checkpoint.revision}")
    return named.text == checkpoint.reference


def _column(direction: Direction, experts: Mapping[str, str], searched: Sequence[Direction], path: Path) -> int:
    """Where a direction of the recipe stands among those that are searched.

    Raises:
        RecipeError: It is not searched; the message has what to write.
    """
    mine = experts.get(direction.expert, "")
    config = _renamed(direction, experts)
    for column, other in enumerate(searched):
        kind = (other.kind, other.expert, other.band) == (direction.kind, mine, direction.band)
        if kind and _settings(other.config) == _settings(config):
            return column
    if direction.kind == "expert":
        what, hint = "the task vector of an expert", "directions: [experts]"
    else:
        written = yaml.safe_dump(_changed(config), default_flow_style=True, sort_keys=False, width=10_000)
        what = f"the method {written.strip()}" if not direction.expert else f"an expert's part in {written.strip()}"
        band_or_whole = direction.band or not direction.expert
        hint = f"directions: [{written.strip()}]" if band_or_whole else f"method: {written.strip()}"
    raise _refusal(
        path,
        f"has coefficients of {direction.name}, {what}, and this search has the directions "
        f"{', '.join(other.name for other in searched)}. Write `{hint}` into the search file (beside what stands "
        "there), or start elsewhere",
    )


def _renamed(direction: Direction, experts: Mapping[str, str]) -> DirectionConfig | None:
    """A method's settings with the search's names of the experts; parts do not depend on weights."""
    config = direction.config
    weights = getattr(config, "weights", None)
    if config is None or weights is None:
        return config
    mine = None if direction.expert else {experts[name]: weight for name, weight in weights.items()}
    return config.model_copy(update={"weights": mine})


def _settings(config: DirectionConfig | None) -> object:
    """What tells two methods apart; where a user's file lies, and what it held then, does not."""
    if isinstance(config, CustomMethodConfig):
        return config.path.rpartition("/")[2], config.settings
    return config


def _changed(config: DirectionConfig | None) -> dict[str, object]:
    """A method's settings as a search file would have them."""
    assert config is not None, "only an expert's direction has none"
    usual = {key: field.default for key, field in type(config).model_fields.items()}
    said = config.model_dump(mode="json")
    return {key: value for key, value in said.items() if key == "name" or value != usual.get(key)}


def _of_parameter(name: str, rows: Rows, table: Table, cut: Cut | None) -> tuple[Table, Table]:
    """A parameter's coefficients by the slices of ``cut``, or one row for all of it; and how far its own are off.

    Args:
        name: The parameter.
        rows: Where the recipe's coefficients belong.
        table: float64[Gr, D'], the recipe's.
        cut: How the search cuts it.

    Returns:
        float64[S, D'] each: the means over elements, and the greatest distances from them.
    """
    first, own = rows.first[name], rows.cuts.get(name)
    if own is None:
        mine = np.repeat(table[first : first + 1], 1 if cut is None else cut.count, axis=0)
        return mine, np.zeros_like(mine)
    mine = table[first : first + own.count]
    if cut == own:
        return mine, np.zeros_like(mine)
    if cut is None:
        mean = _mean(mine, own.sizes().astype(np.float64))
        return mean, np.abs(mine - mean).max(axis=0, keepdims=True)
    return _by_other_slices(mine, own, cut)


def _mean(values: Table, weights: np.ndarray) -> Table:
    """The weighted mean of rows, [1, D]; equal ones to the last bit."""
    if (values == values[0]).all():
        return values[:1]
    mean: Table = (weights[:, None] * values).sum(axis=0, keepdims=True) / weights.sum()
    return mean


def _by_other_slices(mine: Table, own: Cut, cut: Cut) -> tuple[Table, Table]:
    """Coefficients of one cut's slices as those of another's: means over elements, and distances from them."""
    mean, off = np.empty((cut.count, mine.shape[1])), np.empty((cut.count, mine.shape[1]))
    for column in range(mine.shape[1]):
        elements = torch.empty(own.numel, dtype=torch.float64)
        for piece in own.pieces(0, own.numel, _MOST):
            part = elements[piece.lo : piece.hi].view(piece.rows, piece.width)
            part.copy_(piece.spread(torch.from_numpy(mine[:, column])).expand_as(part))
        total = torch.zeros(cut.count, dtype=torch.float64)
        lowest, highest = torch.full_like(total, torch.inf), torch.full_like(total, -torch.inf)
        for piece in cut.pieces(0, cut.numel, _MOST):
            part, along = elements[piece.lo : piece.hi].view(piece.rows, piece.width), 0 if piece.across else 1
            total[piece.groups] += part.sum(along)
            lowest[piece.groups] = torch.minimum(lowest[piece.groups], part.amin(along))
            highest[piece.groups] = torch.maximum(highest[piece.groups], part.amax(along))
        means = total / torch.from_numpy(cut.sizes())
        mean[:, column], off[:, column] = means.numpy(), torch.maximum(highest - means, means - lowest).numpy()
    return mean, off


def _refusal(path: Path, why: str) -> RecipeError:
    return RecipeError(f"space.start: {path} {why}.")
