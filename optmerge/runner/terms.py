"""Terms that bring files of their own: lm-eval tasks and a user's classes. Found, made ready, and known again.

config = config.model_copy(update={"objective": absolute_terms(config.objective, root)})
open_terms(objective, family, reads)
manifest["terms"] = term_hashes(config.objective, objective)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optmerge.config.objectives import CustomConfig, LmEvalConfig, ObjectiveConfig, TermConfig, is_task_file
from optmerge.errors import ConfigError
from optmerge.own_code import absolute_path, file_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from optmerge.models.family import Family
    from optmerge.models.image_processor import ImageProcessor
    from optmerge.objective.objective import Objective
    from optmerge.objective.whole import WholeModelTerm


def absolute_terms(config: ObjectiveConfig, root: Path) -> ObjectiveConfig:
    """The objective with the paths in its terms made absolute.

    Args:
        config: As the search file has it.
        root: Folder of the search file.
    """
    return renamed_terms(
        config,
        own=lambda path: absolute_path(path, root),
        file=lambda path: str((root / Path(path).expanduser()).resolve()),
    )


def renamed_terms(config: ObjectiveConfig, *, own: Callable[[str], str], file: Callable[[str], str]) -> ObjectiveConfig:
    """The objective with other names for the files of its terms.

    Args:
        config: Any.
        own: Makes them of a user's ``FILE.py:CLASS``.
        file: Makes them of lm-eval's task files.
    """

    def one(term: TermConfig) -> TermConfig:
        if isinstance(term, CustomConfig):
            return term.model_copy(update={"path": own(term.path)})
        if isinstance(term, LmEvalConfig):
            return term.model_copy(
                update={"tasks": [file(task) if is_task_file(task) else task for task in term.tasks]}
            )
        return term

    changes: dict[str, Any] = {"terms": [one(term) for term in config.terms]}
    if config.select is not None:
        changes["select"] = [one(term) for term in config.select]
    return config.model_copy(update=changes)


def check_terms(config: ObjectiveConfig) -> None:
    """Look at the files that terms name, and run a user's; torch is imported only where there are some.

    Args:
        config: With absolute paths.

    Raises:
        ConfigError: One is missing or cannot be used.
    """
    for settings in [*config.terms, *(config.select or ())]:
        if isinstance(settings, CustomConfig):
            from optmerge.objective.custom import load_term

            load_term(settings)
        if isinstance(settings, LmEvalConfig):
            from optmerge.objective.harness_tasks import task_files

            task_files(settings)


def whole_terms(objective: Objective) -> Sequence[WholeModelTerm]:
    """The terms of the whole model, those that judge the select split too; each once."""
    terms = [*objective.whole, *objective.on("select").whole]
    return list({id(term): term for term in terms}.values())


def open_terms(objective: Objective, family: Family, reads: PreTrainedTokenizerBase | ImageProcessor) -> None:
    """Make the terms of the whole model ready.

    Raises:
        UserError: One of them cannot judge such models, or what it needs is missing.
    """
    from optmerge.objective.whole import Surroundings

    around = Surroundings(kind=family.kind, reads=reads, base=family.base.folder)
    for term in whole_terms(objective):
        if family.heads != "merged":
            raise ConfigError(
                f"The term {term.name} judges one merged model, and here every task has a head of its own "
                f"(heads: {family.heads}). Use terms that judge the tasks' data, such as expert-kl or accuracy."
            )
        term.open(around)


def untimed_notes(objective: Objective) -> list[str]:
    """What a plan must say of terms whose cost it cannot know."""
    names = dict.fromkeys(term.name for term in whole_terms(objective))
    return [f"the time of the term {name}, which judges the whole model, is not in the estimate" for name in names]


def term_hashes(config: ObjectiveConfig, objective: Objective) -> dict[str, str]:
    """What the terms' values depend on beside models, data and settings: name -> hash.

    Args:
        config: With absolute paths.
        objective: Whose terms are open.
    """
    hashes: dict[str, str] = {}
    for settings in [*config.terms, *(config.select or ())]:
        if isinstance(settings, CustomConfig):
            from optmerge.objective.custom import TERM

            hashes[f"custom term {settings.path}"] = file_hash(settings.path, TERM)
    for term in whole_terms(objective):
        hashes |= term.identity()
    return hashes
