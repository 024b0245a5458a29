"""The parts of a recipe's YAML, each looked at before it is used; errors name file and key, and say what is expected.

reader = Reader(Path("recipe.yaml"))
reader.text(reader.need(body, "base", "a recipe"), "base")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optmerge.errors import RecipeError, did_you_mean
from optmerge.merging.recipe import ModelEntry


class Reader:
    """Reads the parts of a recipe.

    Args:
        path: The recipe's file, or what errors call it where there is none.

    Every method raises RecipeError where a part is not what it should be.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path

    def fail(self, what: str) -> RecipeError:
        """The error that says what is wrong, for the caller to raise."""
        return RecipeError(f"{self.path}: {what}")

    def known(self, body: Mapping[Any, Any], keys: Sequence[str], owner: str) -> None:
        """Refuse keys that ``owner`` has not, with the nearest one that it has."""
        for key in body:
            if key not in keys:
                near = did_you_mean(str(key), keys)
                raise self.fail(f"{key!r} is not a key of {owner}, which has {', '.join(keys)}.{near}")

    def need(self, body: Mapping[Any, Any], key: str, owner: str) -> Any:
        """The value of a key that must be there."""
        if key not in body:
            raise self.fail(f"the key {key!r} is missing from {owner}.")
        return body[key]

    def mapping(self, value: object, where: str) -> dict[str, Any]:
        """A value that must be a mapping."""
        if not isinstance(value, dict):
            raise self.fail(f"{where} is {shown(value)}; expected a mapping.")
        return value

    def listing(self, value: object, where: str) -> list[Any]:
        """A value that must be a list."""
        if not isinstance(value, list):
            raise self.fail(f"{where} is {shown(value)}; expected a list.")
        return value

    def text(self, value: object, where: str) -> str:
        """A value that must be a text, and not an empty one."""
        if not isinstance(value, str) or not value:
            raise self.fail(f"{where} is {shown(value)}; expected a text.")
        return value

    def choice(self, value: object, allowed: Sequence[str], where: str) -> str:
        """A value that must be one of a few texts."""
        if value not in allowed:
            near = did_you_mean(str(value), allowed)
            raise self.fail(f"{where} is {shown(value)}; expected one of {', '.join(allowed)}.{near}")
        return str(value)

    def entry(self, value: object, where: str) -> ModelEntry:
        """A model: its reference, or a mapping with its hash and revision too."""
        if isinstance(value, str) and value:
            return ModelEntry(value)
        if not isinstance(value, dict):
            raise self.fail(
                f"{where} is {shown(value)}; expected a model: a folder, org/name[@revision], or model+adapter."
            )
        self.known(value, ("reference", "sha256", "revision"), where)
        stated = {key: self.text(value[key], f"{where}.{key}") for key in value if value[key] is not None}
        return ModelEntry(self.need(stated, "reference", where), stated.get("sha256"), stated.get("revision"))


def shown(value: object) -> str:
    """A value as an error quotes it, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
