"""How an export names its models to the outside: Hub ids with their commit, local folders by absolute path.

Recipes inside exports use the same, so that they mean the same from any folder.

    outside_reference(family.base)       # "org/model@0123abcd...", or "/models/base"
    hub_id(family.experts["chat"])       # "org/model", or None for a local folder
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.merging.recipe import Recipe
from optmerge.models.reference import ModelReference

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family


@dataclass(frozen=True, slots=True)
class OutsideReference:
    """A model as other programs find it.

    Attributes:
        source: Absolute folder or Hub id.
        local: Whether it is a folder on this machine.
        revision: Commit of a Hub id.
        adapter: The adapter that is merged into it.
    """

    source: str
    local: bool
    revision: str | None = None
    adapter: OutsideReference | None = None

    def __str__(self) -> str:
        text = f"{self.source}@{self.revision}" if self.revision else self.source
        return f"{text}+{self.adapter}" if self.adapter else text


def outside_reference(checkpoint: Checkpoint) -> OutsideReference:
    """Where the model of a checkpoint is."""
    reference = ModelReference.parse(checkpoint.reference, relative_to=Path())
    commits = (checkpoint.revision or "").split("+")  # of the parts that are on the Hub, in order

    def outside(part: ModelReference) -> OutsideReference:
        if part.local:
            return OutsideReference(part.source, local=True)
        commit = commits.pop(0) if commits else None
        return OutsideReference(part.source, local=False, revision=commit or part.revision)

    whole = outside(reference)
    return replace(whole, adapter=outside(reference.adapter)) if reference.adapter else whole


def outside_recipe(recipe: Recipe, family: Family) -> Recipe:
    """The recipe with references that mean the same from any folder."""
    return replace(
        recipe,
        base=replace(recipe.base, reference=str(outside_reference(family.base))),
        experts={
            name: replace(entry, reference=str(outside_reference(family.experts[name])))
            for name, entry in recipe.experts.items()
        },
    )


def hub_id(checkpoint: Checkpoint) -> str | None:
    """The Hub id of a model (of the adapter, for base+adapter); None for a local folder."""
    reference = outside_reference(checkpoint)
    named = reference.adapter or reference
    return None if named.local else named.source
