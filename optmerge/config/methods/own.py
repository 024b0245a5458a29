"""Settings of a method of the user's own, a class in a Python file: docs/own-method.md.

    own = CustomMethodConfig(path="my_methods.py:Shrunk", settings={"share": 0.5})
    title(own)          # "Shrunk", what its direction is called

What the class is, and what of it can be searched, is known when the file has been run (`optmerge.own_code`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from optmerge.config.methods.base import EMBEDDINGS, OTHERS, Embeddings, Facts, MethodSettings, Others, Searched
from optmerge.errors import ConfigError
from optmerge.own_code import Wanted, absolute_path, file_hash, run_file, split_path

OWN = Wanted(
    "custom method",
    "my_methods.py:Shrunk",
    "method",
    "PartsMethod or WholeMethod (from optmerge.merging.methods.own import PartsMethod)",
)


class CustomMethodConfig(MethodSettings):
    """A method of your own: a class in a Python file (docs/own-method.md), which is run."""

    facts = Facts(paper="the user's own", cost="what the class computes")
    name: Literal["custom"] = "custom"
    path: str = Field(description="FILE.py:CLASS; the file is relative to the search file, or to the recipe")
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
    others: Others = Field("mean", description="where the class sees matrices, " + OTHERS)
    embeddings: Embeddings = Field("matrix", description="where the class sees matrices, " + EMBEDDINGS)
    sha256: str | None = Field(
        None, description="hash of the file, as a search's recipe has it: a file of another content is refused"
    )

    @property
    def content(self) -> str:
        """The SHA-256 of the file.

        Raises:
            ConfigError: There is no such file.
        """
        return file_hash(self.path, OWN)

    def beside(self, root: Path) -> CustomMethodConfig:
        """The settings with the path of the file made absolute; ``root`` is the folder that it is relative to."""
        return self.model_copy(update={"path": absolute_path(self.path, root)})


def title(config: BaseModel) -> str:
    """What a method's directions, variables and rows of tables are called after: its name, or a user's class.

    >>> title(CustomMethodConfig(path="mine.py:Shrunk"))
    'Shrunk'
    """
    if isinstance(config, CustomMethodConfig):
        return config.path.rpartition(":")[2]
    return str(type(config).model_fields["name"].default)


def told_settings(config: BaseModel) -> dict[str, Any]:
    """The settings that tell two directions of one method apart; those of a user's class stand beside its file.

    >>> told_settings(CustomMethodConfig(path="mine.py:Shrunk", settings={"share": 0.5}))["share"]
    0.5
    """
    told = config.model_dump(exclude={"name"})
    return {**told.pop("settings"), **told} if isinstance(config, CustomMethodConfig) else told


def content_of(config: BaseModel) -> dict[str, Any]:
    """All that a delta depends on beside models and statistics; of a user's method the file, wherever it lies.

    Raises:
        ConfigError: There is no such file.
    """
    content = config.model_dump()
    if isinstance(config, CustomMethodConfig):
        content |= {"path": title(config), "sha256": config.content}
    return content


def declared(path: str, root: Path) -> Mapping[str, Searched]:
    """What a user's class says of its settings: name -> how it is searched; runs the file.

    Args:
        path: ``FILE.py:CLASS``.
        root: Folder that the file is relative to.

    Raises:
        ConfigError: The file or the class is missing or cannot be run.
    """
    file, name = split_path(absolute_path(path, root), OWN)
    tuned = getattr(getattr(run_file(file, OWN), name, None), "tuned", None)
    if not isinstance(tuned, Mapping) or not all(isinstance(how, Searched) for how in tuned.values()):
        raise ConfigError(
            f"{path} has no settings that say how they are searched; expected a class with tuned = {{NAME: "
            "Searched(LOW, HIGH)} (from optmerge.config.methods import Searched), or a list of values in the search "
            "file."
        )
    return tuned
