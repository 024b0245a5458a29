"""What became of every field of a file that comes from elsewhere.

notes = Notes()
notes.carry("parameters.lambda", "multiplied into the coefficients")
notes.leave("parameters.int8_mask", "it saves memory in mergekit and changes no number")
print(notes.comment())
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

WIDTH = 118


@dataclass
class Notes:
    """Fields and what became of them, in the order in which they were met.

    Attributes:
        carried: Field -> where it went.
        left: Field -> why it was not carried over.
    """

    carried: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def carry(self, key: str, where: str) -> None:
        """A field that is in what is written."""
        self.carried[key] = where

    def leave(self, key: str, why: str) -> None:
        """A field, or a part of its meaning, that is not."""
        self.left[key] = why

    def lines(self) -> list[str]:
        """For people: two lists, the second only where there is something in it."""
        lists = [("Carried over:", self.carried), ("Not carried over:", self.left)]
        return [
            line for title, fields in lists if fields for line in (title, *(f"  {k}: {v}" for k, v in fields.items()))
        ]

    def comment(self) -> str:
        """The same as the comment of a YAML file."""
        return comment("\n".join(self.lines()))


def comment(text: str) -> str:
    """``text`` as lines of a YAML comment, folded with a hanging indent."""
    folded: list[str] = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        folded += textwrap.wrap(
            line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "".join(f"# {line}".rstrip() + "\n" for line in folded)
