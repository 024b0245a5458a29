"""How the verbs print: facts on stdout, as a table or as JSON; everything else on stderr.

    output = Output(json=True)
    output.facts({"dimension": 24})
    output.table(["name", "value"], rows)          # nothing with --json

Tables are plain ASCII. Colour only on a terminal, and not when NO_COLOR is set.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Output:
    """Where one verb's facts go.

    Attributes:
        json: Print facts as JSON, and nothing else, on stdout.
    """

    json: bool = False

    def facts(self, facts: object) -> None:
        """Print facts as JSON, with ``--json`` only. NaN and infinities become null."""
        if self.json:
            sys.stdout.write(json.dumps(_plain(facts), indent=2, allow_nan=False) + "\n")

    def say(self, text: str = "") -> None:
        """Print a line for people on stdout."""
        if not self.json:
            sys.stdout.write(_printable(text, sys.stdout.encoding) + "\n")
            sys.stdout.flush()  # a pipe shows progress as it happens, too

    def note(self, text: str) -> None:
        """Print a line on stderr, whatever stdout is for."""
        sys.stderr.write(_printable(text, sys.stderr.encoding) + "\n")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
        """Print a table for people on stdout.

        Args:
            head: Titles of the columns.
            rows: Cells; numbers are formatted by the caller.
            right: Titles of columns that are aligned to the right.
        """
        if self.json:
            return
        from rich.console import Console
        from rich.table import Table

        terminal = sys.stdout.isatty()
        # A pipe has no width that lines should be folded to.
        console = Console(file=sys.stdout, highlight=False, width=None if terminal else 1000)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for position, title in enumerate(head):
            side: Literal["left", "right"] = "right" if title in right else "left"
            table.add_column(_escape(title), justify=side, no_wrap=position == 0, overflow="fold")
        for row in rows:
            table.add_row(*(_escape("" if cell is None else str(cell)) for cell in row))
        with console.capture() as printed:
            console.print(table)
        for line in printed.get().splitlines():
            sys.stdout.write(line.rstrip() + "\n")


def size(count: float) -> str:
    """Bytes for people: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the loop returns")


def duration(seconds: float) -> str:
    """Seconds for people: ``3 min 20 s``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def number(value: float | None, digits: int = 4) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(_printable(text, sys.stdout.encoding))


def _printable(text: str, encoding: str | None) -> str:
    """``text`` with what the stream cannot write replaced, so that printing never fails."""
    codec = encoding or "ascii"
    return text.encode(codec, "replace").decode(codec)


def _plain(value: Any) -> Any:
    """Facts as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value
