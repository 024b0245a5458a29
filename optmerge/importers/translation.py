"""What an importer gives: the text of a file, and what became of everything in its source."""

from __future__ import annotations

from dataclasses import dataclass

from optmerge.importers.notes import Notes


@dataclass(frozen=True)
class Translation:
    """A file to be written.

    Attributes:
        text: Its content; the notes stand in it as comments.
        notes: The same for the terminal.
    """

    text: str
    notes: Notes
