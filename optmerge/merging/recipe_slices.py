"""Coefficients of slices beside a recipe: a file of safetensors, since YAML is no place for a million numbers.

The file has one float64 tensor [slices, directions] per group that is cut, called as the group. It is named after its
content, and the recipe states name and hash, so that a recipe and the file beside it cannot be mixed up. It is not
called .safetensors: what serves a checkpoint takes all such files in its folder for weights.

    name, content = pack_slices("recipe", {"up.weight": table})
    slices = read_slices(folder / name, sha256)             # {"up.weight": float64[slices, directions]}
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from optmerge.errors import RecipeError
from optmerge.merging.coefficients import Table

SUFFIX = ".slices"
_DIGITS = 12  # of the hash, in the name


def pack_slices(stem: str, tables: Mapping[str, Table]) -> tuple[str, bytes]:
    """A file's name and content.

    Args:
        stem: What the name begins with.
        tables: Group -> float64[slices, directions].
    """
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(table, dtype=np.float64) for name, table in tables.items()})
    return f"{stem}-{slices_sha256(content)[:_DIGITS]}{SUFFIX}", content


def slices_sha256(content: bytes) -> str:
    """The hash that a recipe states."""
    return hashlib.sha256(content).hexdigest()


def read_slices(path: Path, sha256: str) -> dict[str, Table]:
    """The tables of a file.

    Raises:
        RecipeError: It is missing, or not the one with this hash.
    """
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except OSError:
        raise RecipeError(
            f"The recipe's coefficients of slices are in {path.name}, and there is no such file in {path.parent}. Keep "
            "it beside the recipe."
        ) from None
    if slices_sha256(content) != sha256:
        raise RecipeError(
            f"{path} is not the file that the recipe was saved with: its hash is {slices_sha256(content)[:12]}..., the "
            f"recipe says {sha256[:12]}.... Put the original back, or search again."
        )
    return {str(name): np.asarray(table, dtype=np.float64) for name, table in load(content).items()}


def remove_others(recipe: Path, kept: str | None) -> None:
    """Delete the files that earlier recipes of this name had beside them."""
    digits = "[0-9a-f]" * _DIGITS
    for path in recipe.parent.glob(f"{glob.escape(recipe.stem)}-{digits}{SUFFIX}"):
        if path.name != kept:
            path.unlink(missing_ok=True)
