"""The files and folders that a search names: found, and named anew from somewhere else.

config = absolute_references(config, root)
moved = renamed(config, Renaming(model=..., data=..., own=..., file=...))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optmerge.calibration.sources import is_local
from optmerge.config.schema import SearchConfig
from optmerge.models.reference import ModelReference
from optmerge.own_code import absolute_path
from optmerge.runner.own_methods import renamed_methods
from optmerge.runner.terms import renamed_terms


@dataclass(frozen=True)
class Renaming:
    """What each kind of name becomes.

    Attributes:
        model: Of a model's reference: folder, hub id[@revision], or either with an adapter.
        data: Of a task's data: file, folder, or hub id.
        own: Of a user's class, ``FILE.py:CLASS``.
        file: Of a file of another kind: the recipe that a search starts from, lm-eval's task files.
    """

    model: Callable[[str], str]
    data: Callable[[str], str]
    own: Callable[[str], str]
    file: Callable[[str], str]


def renamed(config: SearchConfig, to: Renaming) -> SearchConfig:
    """The search with other names for the same files."""
    space, text_model = config.space, config.text_model
    if space.recipe is not None:
        space = space.model_copy(update={"start": to.file(space.recipe)})
    return renamed_methods(config, to.own).model_copy(
        update={
            "base": to.model(config.base),
            "space": space,
            "text_model": text_model if text_model == "base" else to.model(text_model),
            "experts": {name: to.model(reference) for name, reference in config.experts.items()},
            "objective": renamed_terms(config.objective, own=to.own, file=to.file),
            "schedule": None
            if config.schedule is None
            else [
                stage
                if stage.objective is None
                else stage.model_copy(update={"objective": renamed_terms(stage.objective, own=to.own, file=to.file)})
                for stage in config.schedule
            ],
            "tasks": {
                name: spec.model_copy(update={"data": to.data(spec.data)}) for name, spec in config.tasks.items()
            },
        }
    )


def absolute_references(config: SearchConfig, root: Path) -> SearchConfig:
    """The config with every local path made absolute, so that its run can be resumed from anywhere."""

    def model(text: str) -> str:
        absolute: str = ModelReference.parse(text, relative_to=root).text
        return absolute

    def file(text: str) -> str:
        return str((root / Path(text).expanduser()).resolve())

    def data(text: str) -> str:
        return file(text) if is_local(text, relative_to=root) else text

    return renamed(config, Renaming(model, data, lambda text: absolute_path(text, root), file))
