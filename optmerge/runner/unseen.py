"""What of a model no example ever reaches: the vision tower of a language model that is searched on text.

unseen_notes(family, space)         # [] where everything that is searched is also seen
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optmerge.models.family import Family
    from optmerge.space.space import SearchSpace


def unseen_notes(family: Family, space: SearchSpace) -> list[str]:
    """A sentence for the user where coefficients are searched that change nothing that is measured."""
    parts = {family.parameters[name].role.part for name in space.searched_parameters}
    unseen = [part for part in ("vision", "connector") if part in parts]
    if not unseen:
        return []
    rules = ", ".join(f"{{match: {part}, freeze: 0}}" for part in unseen)
    return [
        f"The tasks are text, so coefficients of the {' and the '.join(unseen)} change nothing that is measured: an "
        "optimiser that follows gradients leaves them where they start, and others move them at random. Keep these "
        f"parts as they are in the base with space.rules: [{rules}]."
    ]
