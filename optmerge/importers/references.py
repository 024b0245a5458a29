"""Model references of another tool's file, as a file of ours has them: from its own folder, and with a name each.

reference_from("zoo/math", Path("recipes"))       # "../zoo/math" where that folder is here, else as it is
expert_names(["org/math-7b", "zoo/math-7b"])      # {"org/math-7b": "math-7b", "zoo/math-7b": "math-7b-2"}
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_UNUSUAL = re.compile(r"[^\w.-]+")


def reference_from(text: str, folder: Path) -> str:
    """A reference whose folders are relative to the working directory, as one relative to ``folder``."""
    path = Path(text).expanduser()
    if path.is_dir():
        return text if path.is_absolute() else os.path.relpath(path.absolute(), folder.absolute())
    if "+" in text:
        model, _, adapter = text.partition("+")
        return f"{reference_from(model, folder)}+{reference_from(adapter, folder)}"
    return text


def expert_names(references: Iterable[str]) -> dict[str, str]:
    """A short name for every reference, from the last part of its path; numbered where two are the same."""
    names: dict[str, str] = {}
    for reference in references:
        last = reference.rpartition("+")[2].partition("@")[0].rstrip("/").rpartition("/")[2]
        stem = _UNUSUAL.sub("-", last).strip("-.") or "expert"
        if stem in ("base", "experts"):  # these words have a meaning of their own
            stem = f"{stem}-expert"
        name, number = stem, 1
        while name in names.values():
            number += 1
            name = f"{stem}-{number}"
        names[reference] = name
    return names
