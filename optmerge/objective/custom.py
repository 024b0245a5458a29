"""``custom``: a term of the user's own, a class in a Python file that the search file names.

    term = load_term(CustomConfig(path="/searches/my_terms.py:Margin", settings={"floor": 0.1}))

The class is a `ModelTerm`, a `CoefficientTerm` or a `WholeModelTerm`; ``settings`` are its constructor's keyword
arguments. The file is run once, as it is at that moment, and `file_hash` is what a resumed run compares. What the class
computes is checked for its shape at every call, so that a mistake is told and not averaged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor

from optmerge.config.objectives import TERM_CONFIGS, CustomConfig
from optmerge.errors import ConfigError, OptmergeError, did_you_mean
from optmerge.objective.base import ModelTerm, Need
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.whole import WholeModelTerm

if TYPE_CHECKING:
    from torch import nn

    from optmerge.calibration.batches import Batch
    from optmerge.objective.geometry import Geometry
    from optmerge.objective.outputs import Outputs
    from optmerge.objective.teacher import TeacherBatch
    from optmerge.records import SplitName

CustomTerm = ModelTerm | CoefficientTerm | WholeModelTerm
_KINDS: tuple[type[Any], ...] = (ModelTerm, CoefficientTerm, WholeModelTerm)
_WANTED = {  # what a class must say of itself, and as what; `paper` may be left out
    ModelTerm: {"name": str, "needs": frozenset, "differentiable": bool, "higher_is_better": bool, "unit": str},
    CoefficientTerm: {"name": str, "differentiable": bool, "unit": str},
    WholeModelTerm: {"name": str, "higher_is_better": bool, "unit": str},
}


def load_term(config: CustomConfig) -> CustomTerm:
    """The term that a search file describes.

    Args:
        config: With the path absolute, or relative to the working directory.

    Raises:
        ConfigError: The file or the class is missing or cannot be run, or is not a whole term; or its name is taken.
    """
    path, name = split_path(config.path)
    module = _run(path)
    found = getattr(module, name, None)
    classes = {
        key: value for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, _KINDS)
    }
    if found is None:
        own = [key for key, value in classes.items() if value.__module__ == module.__name__]
        listed = f"it has {', '.join(own)}" if own else "it has no term at all"
        raise ConfigError(f"{path} has no class {name!r}; {listed}.{did_you_mean(name, own)}")
    if name not in classes:
        raise ConfigError(
            f"{config.path} is no term: expected a subclass of ModelTerm, CoefficientTerm or WholeModelTerm "
            "(from optmerge.objective import ModelTerm)."
        )
    _check_attributes(found, config.path)
    try:
        made: CustomTerm = _checked(found)(**config.settings)
    except Exception as problem:  # whatever the constructor of somebody else raises
        raise ConfigError(
            f"{config.path} cannot be made with the settings {config.settings}: {_reason(problem, str(path))}. "
            f"Settings are the keyword arguments of {name}{inspect.signature(found)}."
        ) from problem
    return made


def split_path(text: str) -> tuple[Path, str]:
    """The file and the class that ``FILE.py:CLASS`` names.

    >>> split_path("terms/mine.py:Margin")
    (PosixPath('terms/mine.py'), 'Margin')

    Raises:
        ConfigError: It does not have that form.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise ConfigError(f"The path of a custom term is {text!r}; expected FILE.py:CLASS, such as my_terms.py:Margin.")
    return Path(file), name


def file_hash(config: CustomConfig) -> str:
    """The SHA-256 of the file that a custom term is from.

    Raises:
        ConfigError: There is no such file.
    """
    return hashlib.sha256(_read(split_path(config.path)[0])).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.py")])
        raise ConfigError(
            f"There is no file {path} for the custom term; it is looked for beside the search file.{near}"
        ) from None
    except OSError as problem:
        raise ConfigError(f"{path}, the file of the custom term, cannot be read: {problem.strerror}.") from None


def _run(path: Path) -> ModuleType:
    """The file as a module; the same content is run once."""
    source = _read(path)
    name = f"optmerge_custom_{hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickles look for it there
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except Exception as problem:  # whatever somebody else's file raises
        del sys.modules[name]
        raise ConfigError(
            f"{path}, the file of the custom term, cannot be run: {_reason(problem, str(path))}."
        ) from problem
    return module


def _reason(problem: Exception, file: str) -> str:
    """An exception in one line, with the last line of the user's file on the way to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == file]
    where = f" ({Path(file).name}, line {lines[-1]})" if lines else ""
    return f"{type(problem).__name__}: {' '.join(str(problem).split()) or 'no message'}{where}"


def _check_attributes(found: type[Any], where: str) -> None:
    base = next(kind for kind in _KINDS if issubclass(found, kind))
    missing = sorted(found.__abstractmethods__)
    if missing:
        raise ConfigError(f"{where} is a {base.__name__} without {' and '.join(missing)}, which must be written.")
    for attribute, kind in _WANTED[base].items():
        value = getattr(found, attribute, None)
        if not isinstance(value, kind):
            wanted = {str: "a text", bool: "True or False", frozenset: "a frozenset, empty or of needs"}[kind]
            raise ConfigError(
                f"{where} has {attribute} = {value!r}; expected {wanted}. A {base.__name__} says of itself: "
                f"{', '.join(_WANTED[base])}."
            )
    unknown = sorted(map(str, getattr(found, "needs", frozenset()) - set(get_args(Need))))
    if unknown:
        raise ConfigError(
            f"{where} needs {', '.join(unknown)}; expected any of {', '.join(get_args(Need))}."
            f"{did_you_mean(unknown[0], get_args(Need))}"
        )
    if found.name in (*TERM_CONFIGS, "custom"):
        raise ConfigError(f"{where} is called {found.name!r}, as a term of optmerge is; give it a name of its own.")


def _checked(found: type[Any]) -> type[Any]:
    """The class, with its values looked at."""
    checks = {
        ModelTerm: _CheckedModelTerm,
        CoefficientTerm: _CheckedCoefficientTerm,
        WholeModelTerm: _CheckedWholeModelTerm,
    }
    mixins = tuple(check for kind, check in checks.items() if issubclass(found, kind))
    body = {"paper": getattr(found, "paper", "the user's own"), "__module__": found.__module__}
    return cast("type[Any]", type(found.__name__, (*mixins, found), body))


class _CheckedModelTerm(ModelTerm):
    """Stands before a user's class, and looks at what that one gives."""

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        try:
            values = super().per_example(outputs, batch, teacher)  # type: ignore[safe-super]
        except OptmergeError:
            raise
        except Exception as problem:  # whatever somebody else's code raises
            if outputs.logits.device.type != "meta":  # an evaluation that fails
                raise
            reason = _reason(problem, _file(self))
            if not isinstance(problem, RuntimeError | TypeError):  # what an operation that wants values raises
                raise ConfigError(f"The custom term {self.name} cannot be computed: {reason}.") from problem
            raise ConfigError(
                f"The custom term {self.name} cannot be computed on shapes without values (the meta device), which is "
                f"how memory is planned: {reason}. Leave out .item(), float(), if on tensors and boolean indexing; "
                "torch.where does the same."
            ) from problem
        size = len(outputs.logits)
        shape = f"[{size}, m]" if self.summary else f"[{size}]"
        if (
            not isinstance(values, Tensor)
            or values.dim() != 1 + self.summary
            or len(values) != size
            or not values.is_floating_point()
        ):
            raise ConfigError(
                f"The custom term {self.name} gives {_what(values)} for a batch of {size} examples; expected a float "
                f"tensor {shape}, one {'row of statistics' if self.summary else 'value'} per example "
                "(mean_per_example of optmerge.objective.base makes them of a language model's tokens)."
            )
        wanted = self.differentiable and torch.is_grad_enabled() and outputs.logits.requires_grad
        if wanted and not values.requires_grad:
            raise ConfigError(
                f"The custom term {self.name} says that it is differentiable, and its values have no gradient. Leave "
                "out detach(), no_grad() and argmax, or say differentiable = False and take a driver that needs none."
            )
        return values

    def layers(self, count: int) -> tuple[int, ...]:
        """See `ModelTerm.layers`."""
        found = super().layers(count)
        known = isinstance(found, tuple) and all(isinstance(layer, int) and 0 <= layer < count for layer in found)
        if not known or (not found and "hidden" in self.needs):
            raise ConfigError(
                f"The custom term {self.name} names the layers {found} of {count}; expected a tuple of numbers from 0 "
                f"to {count - 1}{', one at least, because it needs hidden' if 'hidden' in self.needs else ''}."
            )
        return found


class _CheckedCoefficientTerm(CoefficientTerm):
    """Stands before a user's class, and looks at what that one gives."""

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`."""
        value = super().value(coefficients, geometry)  # type: ignore[safe-super]
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise ConfigError(f"The custom term {self.name} gives {_what(value)}; expected a tensor with one number.")
        return value


class _CheckedWholeModelTerm(WholeModelTerm):
    """Stands before a user's class, and looks at what that one gives."""

    def measure(self, model: nn.Module, split: SplitName) -> float:
        """See `WholeModelTerm.measure`."""
        value: object = super().measure(model, split)  # type: ignore[safe-super]
        if not isinstance(value, Real):
            raise ConfigError(f"The custom term {self.name} gives {_what(value)}; expected a number, such as a float.")
        return float(value)


def try_regularisers(terms: Iterable[CoefficientTerm], coefficients: Tensor, geometry: Geometry) -> None:
    """Compute terms of the coefficients once, so that a mistake in a user's file is found before a search.

    Args:
        terms: The user's, and others.
        coefficients: fp64[G, D].
        geometry: Of the table.

    Raises:
        ConfigError: A term cannot be computed, or has nothing to look at.
    """
    for term in terms:
        try:
            term.value(coefficients, geometry)
        except OptmergeError:
            raise
        except Exception as problem:  # whatever somebody else's code raises
            if not isinstance(term, _CheckedCoefficientTerm):
                raise
            file = _file(term)
            raise ConfigError(
                f"The custom term {file}:{type(term).__name__} cannot be computed where the search starts: "
                f"{_reason(problem, file)}."
            ) from problem


def _file(term: CustomTerm) -> str:
    """The file that a user's term is from."""
    return str(sys.modules[type(term).__module__].__file__)


def _what(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
