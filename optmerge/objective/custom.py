"""``custom``: a term of the user's own, a class in a Python file that the search file names.

    term = load_term(CustomConfig(path="/searches/my_terms.py:Margin", settings={"floor": 0.1}))

The class is a `ModelTerm`, a `CoefficientTerm` or a `WholeModelTerm`; ``settings`` are its constructor's keyword
arguments. `optmerge.own_code` finds and runs it. What the class computes is checked for its shape at every call, so
that a mistake is told and not averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import Tensor

from optmerge.config.objectives import TERM_CONFIGS, CustomConfig
from optmerge.errors import ConfigError, OptmergeError, did_you_mean
from optmerge.objective.base import ModelTerm, Need
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.whole import WholeModelTerm
from optmerge.own_code import Wanted, file_of, made, own_class, reason, require_attributes

if TYPE_CHECKING:
    from torch import nn

    from optmerge.calibration.batches import Batch
    from optmerge.objective.geometry import Geometry
    from optmerge.objective.outputs import Outputs
    from optmerge.objective.teacher import TeacherBatch
    from optmerge.records import SplitName

TERM = Wanted(
    "custom term",
    "my_terms.py:Margin",
    "term",
    "ModelTerm, CoefficientTerm or WholeModelTerm (from optmerge.objective import ModelTerm)",
)
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
    found = own_class(config.path, TERM, _KINDS)
    _check_attributes(found, config.path)
    term: CustomTerm = made(config.path, _checked(found), config.settings)
    return term


def _check_attributes(found: type[Any], where: str) -> None:
    base = next(kind for kind in _KINDS if issubclass(found, kind))
    require_attributes(found, where, base.__name__, _WANTED[base])
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
            why = reason(problem, file_of(self))
            if not isinstance(problem, RuntimeError | TypeError):  # what an operation that wants values raises
                raise ConfigError(f"The custom term {self.name} cannot be computed: {why}.") from problem
            raise ConfigError(
                f"The custom term {self.name} cannot be computed on shapes without values (the meta device), which is "
                f"how memory is planned: {why}. Leave out .item(), float(), if on tensors and boolean indexing; "
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
            file = file_of(term)
            raise ConfigError(
                f"The custom term {file}:{type(term).__name__} cannot be computed where the search starts: "
                f"{reason(problem, file)}."
            ) from problem


def _what(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
