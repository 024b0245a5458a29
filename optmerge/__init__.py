"""Search for model-merging recipes: one merged model that keeps what every expert knows, found without labels.

    import optmerge

    run = optmerge.search("search.yaml")            # or a SearchConfig, or the same as a mapping
    folder = optmerge.merge(run.recipe, "merged")   # a checkpoint; without a folder, a dict of tensors

Names are imported when they are first used, so that ``import optmerge`` costs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optmerge.api import export, merge, resume, search
    from optmerge.config.load import load_config
    from optmerge.config.schema import SearchConfig
    from optmerge.errors import (
        ConfigError,
        DataError,
        ExportError,
        MissingExtraError,
        ModelError,
        OptmergeError,
        RecipeError,
        RunError,
        RunFailed,
        RunInterrupted,
        UserError,
    )
    from optmerge.merging.recipe import Recipe
    from optmerge.runner.search import Run

    __version__: str

_HOMES = {
    "ConfigError": "optmerge.errors",
    "DataError": "optmerge.errors",
    "ExportError": "optmerge.errors",
    "MissingExtraError": "optmerge.errors",
    "ModelError": "optmerge.errors",
    "OptmergeError": "optmerge.errors",
    "Recipe": "optmerge.merging.recipe",
    "RecipeError": "optmerge.errors",
    "Run": "optmerge.runner.search",
    "RunError": "optmerge.errors",
    "RunFailed": "optmerge.errors",
    "RunInterrupted": "optmerge.errors",
    "SearchConfig": "optmerge.config.schema",
    "UserError": "optmerge.errors",
    "export": "optmerge.api",
    "load_config": "optmerge.config.load",
    "merge": "optmerge.api",
    "resume": "optmerge.api",
    "search": "optmerge.api",
}

__all__ = [
    "ConfigError",
    "DataError",
    "ExportError",
    "MissingExtraError",
    "ModelError",
    "OptmergeError",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "RunFailed",
    "RunInterrupted",
    "SearchConfig",
    "UserError",
    "__version__",
    "export",
    "load_config",
    "merge",
    "resume",
    "search",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("optmerge")
    if name not in _HOMES:
        raise AttributeError(f"module 'optmerge' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
