"""Classes in Python files of the user's own: found, run once, made, and known again by their file's hash.

    TERM = Wanted("custom term", "my_terms.py:Margin", "term", "ModelTerm (from optmerge.objective import ModelTerm)")
    found = own_class("/searches/my_terms.py:Margin", TERM, (ModelTerm,))
    term = made("/searches/my_terms.py:Margin", found, {"wanted": 0.3})

A file is run as it is at that moment, and the same content once; `file_hash` is what a resumed run compares. Whatever
somebody else's code raises is told in one sentence, with the line of the file that it came from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from optmerge.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user's class is to be, for messages.

    Attributes:
        what: What it is called: "custom term".
        example: How one is named: "my_terms.py:Margin".
        kind: The plain word: "term".
        bases: The classes that it may be a subclass of, and how to import one.
    """

    what: str
    example: str
    kind: str
    bases: str


def own_class(text: str, wanted: Wanted, bases: tuple[type[Any], ...]) -> type[Any]:
    """The class that ``FILE.py:CLASS`` names.

    Args:
        text: With the path absolute, or relative to the working directory.
        wanted: For messages.
        bases: It must be a subclass of one of these.

    Raises:
        ConfigError: The file or the class is missing or cannot be run, or the class is of another kind.
    """
    path, name = split_path(text, wanted)
    module = run_file(path, wanted)
    found = getattr(module, name, None)
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, bases)}
    if found is None:
        own = [key for key, value in classes.items() if value.__module__ == module.__name__]
        listed = f"it has {', '.join(own)}" if own else f"it has no {wanted.kind} at all"
        raise ConfigError(f"{path} has no class {name!r}; {listed}.{did_you_mean(name, own)}")
    if name not in classes:
        raise ConfigError(f"{text} is no {wanted.kind}: expected a subclass of {wanted.bases}.")
    return classes[name]


def require_attributes(found: type[Any], text: str, kind: str, attributes: Mapping[str, type[Any]]) -> None:
    """Refuse a class that leaves something unwritten, or does not say of itself what its kind says.

    Args:
        found: The class.
        text: How the search file names it.
        kind: What it is a subclass of.
        attributes: What it must have, and of which type.

    Raises:
        ConfigError: Something is missing, or of another type.
    """
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(f"{text} is a {kind} without {' and '.join(missing)}, which must be written.")
    words = {str: "a text", bool: "True or False", frozenset: "a frozenset, empty or of needs", dict: "a dict"}
    for attribute, wanted in attributes.items():
        value = getattr(found, attribute, None)
        if not isinstance(value, wanted):
            raise ConfigError(
                f"{text} has {attribute} = {value!r}; expected {words[wanted]}. A {kind} says of itself: "
                f"{', '.join(attributes)}."
            )


def made(text: str, found: Callable[..., Any], settings: Mapping[str, Any]) -> Any:
    """An instance of a user's class.

    Args:
        text: How the search file names it.
        found: The class, or what makes one of it.
        settings: Its keyword arguments.

    Raises:
        ConfigError: The constructor refuses them.
    """
    file, _, name = text.rpartition(":")
    try:
        return found(**settings)
    except Exception as problem:  # whatever the constructor of somebody else raises
        raise ConfigError(
            f"{text} cannot be made with the settings {dict(settings)}: {reason(problem, file)}. "
            f"Settings are the keyword arguments of {name}{inspect.signature(found)}."
        ) from problem


def split_path(text: str, wanted: Wanted) -> tuple[Path, str]:
    """The file and the class that ``FILE.py:CLASS`` names.

    >>> split_path("terms/mine.py:Margin", Wanted("custom term", "my_terms.py:Margin", "term", "ModelTerm"))
    (PosixPath('terms/mine.py'), 'Margin')

    Raises:
        ConfigError: It does not have that form.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"The path of a {wanted.what} is {text!r}; expected FILE.py:CLASS, such as {wanted.example}.")
    return Path(file), name


def absolute_path(text: str, root: Path) -> str:
    """``FILE.py:CLASS`` with its file made absolute; a text of another form as it is.

    Args:
        text: As the search file has it.
        root: Folder of the search file.
    """
    file, colon, name = text.rpartition(":")
    return f"{(root / Path(file).expanduser()).resolve()}{colon}{name}" if colon else text


def file_hash(text: str, wanted: Wanted) -> str:
    """The SHA-256 of the file that ``FILE.py:CLASS`` names.

    Raises:
        ConfigError: There is no such file.
    """
    return hashlib.sha256(_read(split_path(text, wanted)[0], wanted)).hexdigest()


def run_file(path: Path, wanted: Wanted) -> ModuleType:
    """A file as a module; the same content is run once.

    Raises:
        ConfigError: It is missing, or raises something.
    """
    source = _read(path, wanted)
    name = f"optmerge_custom_{hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickles look for it there
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as problem:  # whatever somebody else's file raises, or where it would end
        del sys.modules[name]
        raise ConfigError(
            f"{path}, the file of the {wanted.what}, cannot be run: {reason(problem, str(path))}."
        ) from problem
    return module


def file_of(instance: object) -> str:
    """The file that a user's object is from."""
    return str(sys.modules[type(instance).__module__].__file__)


def reason(problem: BaseException, file: str) -> str:
    """An exception in one line, with the last line of the user's file on the way to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == file]
    where = f" ({Path(file).name}, line {lines[-1]})" if lines else ""
    return f"{type(problem).__name__}: {' '.join(str(problem).split()) or 'no message'}{where}"


def _read(path: Path, wanted: Wanted) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])
        raise ConfigError(
            f"There is no file {path} for the {wanted.what}; it is looked for beside the search file.{near}"
        ) from None
    except OSError as problem:
        raise ConfigError(f"{path}, the file of the {wanted.what}, cannot be read: {problem.strerror}.") from None
