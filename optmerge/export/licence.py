"""The licence of a merge, from what its models state about themselves; nothing is guessed.

    found = inherit(family)
    found.licence         # the one that every model states, or None
    found.section()       # Markdown: who states what, and why the merge states none

A model states its licence in the metadata of its card (``README.md``), else under ``license`` in ``config.json``. An
expert that is an adapter on a base is both of them. Only where all state the same does the merge state it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from optmerge.export.companions import CONFIG
from optmerge.models.adapter import AdapterCheckpoint
from optmerge.models.aligned import AlignedCheckpoint
from optmerge.tracking.markdown import table

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence as cards state it.

    Attributes:
        ids: What stands under ``license``: one of the Hub's identifiers, or several.
        name: ``license_name``, of one that the Hub has no identifier for.
        link: ``license_link``.
    """

    ids: tuple[str, ...]
    name: str | None = None
    link: str | None = None

    def __str__(self) -> str:
        text = ", ".join(f"`{each}`" for each in self.ids)
        text += f" ({self.name})" if self.name else ""
        return f"[{text}]({self.link})" if self.link else text

    @property
    def terms(self) -> tuple[tuple[str, ...], str | None]:
        """What must be equal for two to be the same licence; its text may be linked from several places."""
        return tuple(sorted(each.lower() for each in self.ids)), self.name


@dataclass(frozen=True, slots=True)
class Statement:
    """What one model states.

    Attributes:
        who: ``base``, an expert's name, or ``NAME (adapter)``.
        licence: None where it states none.
        note: Why there is none, if more is known.
    """

    who: str
    licence: Licence | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Inherited:
    """What all models of a merge state.

    Attributes:
        statements: One per model, the base first.
    """

    statements: tuple[Statement, ...]

    @property
    def licence(self) -> Licence | None:
        """The licence that every model states; None where one states another or none."""
        first = self.statements[0].licence
        same = first is not None and all(
            each.licence is not None and each.licence.terms == first.terms for each in self.statements
        )
        return first if same else None

    @property
    def conflict(self) -> bool:
        """Whether two models state different licences."""
        return len({each.licence.terms for each in self.statements if each.licence}) > 1

    def section(self) -> str:
        """What a card says about it, in Markdown."""
        if self.licence is not None:
            return f"Every model of this merge states {self.licence}."
        if not any(each.licence for each in self.statements):
            return (
                "None of the models states a licence, so this card states none. Whoever publishes the merge has to "
                "know it: add `license:` to the metadata."
            )
        why = "The models state **different licences**" if self.conflict else "Not every model states a licence"
        rows = [
            [each.who, str(each.licence) if each.licence else each.note or "states none"] for each in self.statements
        ]
        return (
            f"{why}, so this card states none. Whoever publishes the merge has to settle it: add `license:` to the "
            f"metadata.\n\n{table(['model', 'licence'], rows, left=(0, 1))}"
        )


def inherit(family: Family) -> Inherited:
    """What the models of a family state."""
    checkpoints = {"base": family.base, **family.experts}
    return Inherited(
        tuple(
            _statement(who, folder)
            for name, checkpoint in checkpoints.items()
            for who, folder in _folders(name, checkpoint)
        )
    )


def _folders(name: str, checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """The folders that a model is made of."""
    if isinstance(checkpoint, AlignedCheckpoint):
        checkpoint = checkpoint.inner
    yield name, checkpoint.folder
    if isinstance(checkpoint, AdapterCheckpoint):
        yield f"{name} (adapter)", checkpoint.adapter_folder


def _statement(who: str, folder: Path) -> Statement:
    from huggingface_hub import metadata_load

    try:
        card: dict[str, Any] = (metadata_load(folder / CARD) if (folder / CARD).is_file() else None) or {}
    except (ValueError, yaml.YAMLError, OSError):
        return Statement(who, None, "its card's metadata cannot be read")
    found = _licence(card) or _licence(_config(folder / CONFIG))
    if found is None and any(path.is_file() for path in folder.glob("LICENSE*")):
        return Statement(who, None, "has a LICENSE file and states no identifier")
    return Statement(who, found)


def _config(path: Path) -> dict[str, Any]:
    """A config.json, or an empty mapping: adapters have none, and opening a model has read any other already."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _licence(metadata: dict[str, Any]) -> Licence | None:
    stated = metadata.get("license")
    ids = [stated] if isinstance(stated, str) else stated
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) and each for each in ids):
        return None
    name, link = (metadata.get(f"license_{key}") for key in ("name", "link"))
    return Licence(tuple(ids), name if isinstance(name, str) else None, link if isinstance(link, str) else None)
