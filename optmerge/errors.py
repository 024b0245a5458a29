"""What can go wrong, as one tree.

    OptmergeError
    ├── UserError              the user can mend it: one paragraph, exit code 2, no traceback
    │   ├── ConfigError        the search file, an override, a preset or a command line
    │   ├── ModelError         a model reference or checkpoint that is missing, damaged or does not fit
    │   ├── DataError          calibration data that is missing, malformed or too small
    │   ├── RunError           a run directory that cannot be used (other run, changed inputs, disk)
    │   ├── RecipeError        a recipe file that is malformed or does not fit its models
    │   ├── ExportError        a recipe that the wanted format cannot express
    │   └── MissingExtraError  an optional feature whose extra is not installed
    ├── RunFailed              the search itself failed (exit code 3); the run directory holds everything up to then
    └── RunInterrupted         the user stopped it (exit code 130); state is saved, the message is the resume command

Anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OptmergeError(Exception):
    """Base of every error that optmerge raises on purpose."""

    exit_code = 1


class UserError(OptmergeError):
    """Something that the user can mend; the message says what and how."""

    exit_code = 2


class ConfigError(UserError):
    """The search file, an override, a preset or the command line is wrong."""


class ModelError(UserError):
    """A model reference or checkpoint is missing, damaged or does not fit the others."""


class DataError(UserError):
    """Calibration data is missing, malformed or too small for its splits."""


class RunError(UserError):
    """A run directory cannot be used: it holds another run, its inputs changed, or the disk refuses."""


class RecipeError(UserError):
    """A recipe file is malformed or does not fit its models."""


class ExportError(UserError):
    """The wanted format cannot express the recipe; the message says why and what can."""


class MissingExtraError(UserError):
    """An optional feature was asked for and its extra is not installed."""


class RunFailed(OptmergeError):
    """The search failed; what it had recorded is intact."""

    exit_code = 3


class RunInterrupted(OptmergeError):
    """The user stopped the search; its state is saved."""

    exit_code = 130


def near_matches(word: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """Names among ``known`` that look like ``word``, the nearest first (at most ``most``)."""
    names = list(known)
    folded = {name.casefold().replace("_", "-"): name for name in names}
    hits = difflib.get_close_matches(word.casefold().replace("_", "-"), folded, n=most, cutoff=0.6)
    return [folded[hit] for hit in hits]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with a leading space, or an empty string when nothing is near."""
    hits = near_matches(word, known)
    if not hits:
        return ""
    return " Did you mean " + " or ".join(repr(hit) for hit in hits) + "?"
