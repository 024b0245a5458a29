r"""Prompt and completion of a language model's example, filled from the columns of a row.

    template = Template.parse("Q: {question}\nA:", where="tasks.maths.template.prompt")
    template.columns                         # ("question",)
    template.fill({"question": "2 + 2?"})

Filling is plain replacement: no attribute, index or format of a value can be reached from a search file.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from optmerge.config.tasks import TemplateConfig
from optmerge.errors import ConfigError


@dataclass(frozen=True)
class Template:
    """Literal text and columns, in turn.

    >>> Template.parse("{{{word}}}!", where="prompt").fill({"word": "hi"})
    '{hi}!'
    """

    pieces: tuple[tuple[str, str | None], ...]  # literal, then the column that follows it (None: nothing follows)

    @classmethod
    def parse(cls, text: str, *, where: str) -> Template:
        """Read ``text``, in which ``{column}`` stands for a value and ``{{``, ``}}`` for braces.

        Raises:
            ConfigError: A brace stands alone, or a field is more than a column's name.
        """
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as problem:
            raise ConfigError(
                f"{where} is {text!r}: {problem}. Write {{{{ and }}}} for braces that are text."
            ) from None
        for _, column, form, conversion in parsed:
            if column is not None and (not column or form or conversion):
                raise ConfigError(
                    f"{where} is {text!r}: every {{...}} must hold the name of a column and nothing else. "
                    "Write {{ and }} for braces that are text."
                )
        return cls(tuple((literal, column) for literal, column, _, _ in parsed))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it needs, each once."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    def fill(self, row: Mapping[str, str]) -> str:
        """The text for one row."""
        return "".join(literal + (row[column] if column is not None else "") for literal, column in self.pieces)


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt's and a completion's template."""

    prompt: Template
    completion: Template

    @classmethod
    def of(cls, config: TemplateConfig | Literal["chat"] | None, *, where: str) -> PromptTemplate | None:
        """Read both; None where a task has none of its own. ``where`` is the task, for messages.

        Raises:
            ConfigError: See `Template.parse`.
        """
        if config is None or config == "chat":
            return None
        return cls(
            Template.parse(config.prompt, where=f"{where}.template.prompt"),
            Template.parse(config.completion, where=f"{where}.template.completion"),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that they need, each once."""
        return tuple(dict.fromkeys(self.prompt.columns + self.completion.columns))

    def fill(self, row: Mapping[str, str]) -> tuple[str, str]:
        """Prompt and completion for one row."""
        return self.prompt.fill(row), self.completion.fill(row)
