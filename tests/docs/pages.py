"""What the pages of the documentation tell a reader to type and to write, in the order in which it stands there.

    page = read_page("docs/publish.md")
    page.steps           # commands, files and Python, in order
    page.inline          # commands within sentences and tables

A fenced block is one of ``console`` (commands behind ``$``, the lines below them being what they print), ``yaml``,
``python``, ``json``, or ``text`` (which nobody types). A block whose first line is a comment with a file's name is that
file.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("console", "yaml", "python", "json", "text")
PROGRAMS = ("optmerge", "make", "pip", "python", "wandb", "hf", "trackio", "mergekit-yaml", "mergekit-evolve")
SYNOPSES = ("docs/cli.md",)  # made from the verbs, whose examples have a test of their own

_FENCE = re.compile(r"^([ ]*)```(\w*)[^\n]*\n(.*?)^\1```$", flags=re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:yaml|yml|py|txt|jsonl))\b")
_SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Command:
    """One line behind ``$``.

    Attributes:
        words: The program and its arguments.
        line: Of the page.
        environment: Variables that are set in front of it.
        shown: What the page shows of its output, line by line.
    """

    words: tuple[str, ...]
    line: int
    environment: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shlex.join([*self.environment, *self.words])


@dataclass(frozen=True)
class Block:
    """A fenced block that is not of commands; ``file`` is the name that its first line gives it."""

    language: str
    text: str
    line: int
    file: str | None


@dataclass(frozen=True)
class Page:
    """A page by its path below the root."""

    name: str
    text: str
    steps: list[Command | Block] = field(default_factory=list)

    @property
    def commands(self) -> list[Command]:
        """All that stand behind ``$``."""
        return [step for step in self.steps if isinstance(step, Command)]

    @property
    def runs(self) -> bool:
        """Whether there is something to run: a command, or Python that is no file."""
        return bool(self.commands) or any(block.file is None for block in self.blocks("python"))

    def blocks(self, language: str) -> list[Block]:
        """The blocks of one language."""
        return [step for step in self.steps if isinstance(step, Block) and step.language == language]

    @cached_property
    def inline(self) -> list[Command]:
        """Code within sentences and tables that begins like a command, and what ``text`` says of optmerge."""
        outside = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), self.text)
        found = []
        for span in _SPAN.finditer(outside):
            words = span[1].split()
            if words[:1] and words[0] in PROGRAMS and len(words) > 1:
                line = outside.count("\n", 0, span.start()) + 1
                found.append(command_of(" ".join(words), line, ()))
        for block in self.blocks("text") if self.name not in SYNOPSES else []:
            for typed in re.findall(r"(?:^|[$ ])(optmerge \w.*)$", block.text.replace("\\\n", ""), flags=re.MULTILINE):
                found.append(command_of(typed, block.line, ()))
        return found


def pages() -> list[str]:
    """Every page that a reader meets."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *docs]


def read_page(name: str, changes: dict[str, str] | None = None) -> Page:
    """A page, after replacements of its text.

    Raises:
        AssertionError: A text to be replaced is not there, or a block is of no known language.
    """
    text = (ROOT / name).read_text(encoding="utf-8")
    for old, new in (changes or {}).items():
        assert old in text, f"{name} does not say {old!r} any more; take it out of the table"
        text = text.replace(old, new)
    page = Page(name, text)
    for fence in _FENCE.finditer(text):
        indent, language, content = fence[1], fence[2], fence[3]
        line = text.count("\n", 0, fence.start()) + 1
        assert language in LANGUAGES, f"{name}:{line}: a block of {language or 'no language'}; expected {LANGUAGES}"
        content = re.sub(rf"^{indent}", "", content, flags=re.MULTILINE)
        if language == "console":
            page.steps.extend(_commands(content, line + 1))
        else:
            named = _FILE.match(content)
            page.steps.append(Block(language, content, line, named[1] if named else None))
    return page


def command_of(text: str, line: int, shown: tuple[str, ...]) -> Command:
    """A command line as words, without its comment, with what is set in front of it apart."""
    words = shlex.split(text, comments=True)
    count = next((at for at, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return Command(tuple(words[count:]), line, tuple(words[:count]), shown)


def _commands(content: str, first: int) -> list[Command]:
    lines = content.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("$ ")]
    assert starts, f"a console block without a command: {content!r}"
    assert starts[0] == 0, f"a console block that begins with output: {content!r}"
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = start
        while lines[last].endswith("\\"):
            last += 1
        typed = " ".join(line.rstrip("\\") for line in lines[start : last + 1])[2:]
        found.append(command_of(typed, first + start, tuple(line for line in lines[last + 1 : end] if line.strip())))
    return found
