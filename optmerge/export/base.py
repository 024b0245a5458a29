"""What every exporter has: a name, an answer to "can you express this recipe?", and one `export`.

An export is whole or absent, and nothing is overwritten.

    exporter = EXPORTERS["mergekit"]()
    reason = exporter.can_express(recipe, family)   # None, or why not and what can
    exporter.export(recipe, family, Path("merge.yml"))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from optmerge.errors import ExportError
from optmerge.export.evidence import Evidence
from optmerge.merging.recipe import Recipe
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.family import Family


class Exporter(ABC):
    """Writes a recipe in a form that others can use.

    Attributes:
        name: What ``--format`` calls it.
        summary: One line for listings.
        needs_models: False when the recipe alone is enough, so that no model has to be opened.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_models: ClassVar[bool] = True

    @abstractmethod
    def can_express(self, recipe: Recipe, family: Family | None) -> str | None:
        """None when this format can hold the recipe exactly, else one paragraph: why not, and what can."""

    @abstractmethod
    def export(
        self,
        recipe: Recipe,
        family: Family | None,
        to: Path,
        *,
        evidence: Evidence | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write the recipe to ``to``, whole or not at all.

        Args:
            recipe: What to write.
            family: The opened models; may be None where ``needs_models`` is False.
            to: A file or an absent or empty folder, as the format has it.
            evidence: What is known of the recipe, for formats that show scores.
            progress: Told how far the work is.

        Returns:
            What was written.

        Raises:
            ExportError: The format cannot express the recipe, or ``to`` is taken or has the wrong suffix.
            RunError: The disk refuses.
        """


def require_expressible(exporter: Exporter, recipe: Recipe, family: Family | None) -> None:
    """Raise the exporter's reason if it has one.

    Raises:
        ExportError: ``exporter`` cannot express ``recipe``.
    """
    reason = exporter.can_express(recipe, family)
    if reason:
        raise ExportError(reason)


def require_new_file(to: Path, suffixes: tuple[str, ...]) -> None:
    """Check that a file can be written without overwriting anything.

    Raises:
        ExportError: ``to`` exists, or its suffix is not among ``suffixes``.
    """
    if to.suffix.lower() not in suffixes:
        found = to.suffix or "no suffix"
        raise ExportError(f"{to} ends in {found}; expected a file name ending in {', '.join(suffixes)}.")
    if to.exists():
        raise ExportError(f"{to} exists and is not overwritten. Choose another name, or remove it first.")


def require_new_folder(to: Path) -> None:
    """Check that a folder can be filled without overwriting anything.

    Raises:
        ExportError: ``to`` is a file, or a folder that holds something.
    """
    if to.is_dir() and any(to.iterdir()):
        raise ExportError(f"The folder {to} is not empty and is not overwritten. Choose another, or empty it first.")
    if to.exists() and not to.is_dir():
        raise ExportError(f"{to} is a file; a new or empty folder is expected. Choose another name.")
