"""What every merging method declares beside its settings: where it is from, what it needs, what of it is searched.

    class HalvedConfig(MethodSettings):
        facts = Facts(paper="Doe 2025", cost="one pass over the weights", linear=True)
        name: Literal["halved"] = "halved"
        keep: float = Field(0.5, ge=0, le=1, description="...", json_schema_extra=searched(0.1, 1.0, grid=(0.25, 0.5)))

`optmerge ls methods`, docs/methods.md, validation and the tuning of baselines are all made from these declarations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, FiniteFloat

from optmerge.config.base import Strict

Compat = Literal["paper", "mergekit"]
Scope = Literal["model", "tensor", "row", "stacked"]
Others = Literal["mean", "sum", "base"]
Embeddings = Literal["matrix", "mean", "sum", "base"]
Share = Annotated[FiniteFloat, Field(ge=0)]
Need = Literal["grams", "merged-grams", "output-grams", "fisher", "saliency", "base-saliency", "logit-distance"]
"""Statistics of the experts on calibration data, see `optmerge.merging.methods.base.Models.statistic`."""
LABELLED: frozenset[Need] = frozenset({"saliency", "base-saliency"})
"""Those that are of a loss on labels."""

WEIGHTS = "expert's name -> weight of its task vector; null, or an expert left out = 1"
SHARES = "expert's name -> weight, 0 or more; null, or an expert left out = 1"
COMPAT = "whose rules hold where the two differ: the paper's, or those of mergekit 0.1.5 (see docs/methods.md)"
TOLERANCE = "singular values below this share of the largest are cut, 0-1 (their directions are arbitrary)"
OTHERS = "what is not a matrix gets: mean or sum of the task vectors, or base (it stays as it is)"
EMBEDDINGS = "what embeddings and heads get: matrix (treated like any matrix), mean, sum or base"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a method before it runs.

    Attributes:
        paper: Authors and year.
        cost: Of one merge, for people: what is read, decomposed or run.
        scale: The global scale (lambda, alpha) that the paper or its code publishes as the default; the coefficient of
            the method's direction in a leaderboard at published settings.
        linear: The delta is a sum of one part per expert, so that each can be scaled.
        alone: Each expert's part is the same whoever else is merged, and in whatever order.
        needs: Statistics of the experts on calibration data; each expert must then have a task.
        labels: Whether the statistics read labels.
        mergekit: What mergekit 0.1.5 calls it, where a configuration for mergekit can say the same; else None.
        experts: Fewest and most experts that it merges; None = any number.
    """

    paper: str
    cost: str
    scale: float = 1.0
    linear: bool = False
    alone: bool = False
    needs: tuple[Need, ...] = ()
    labels: bool = False
    mergekit: str | None = None
    experts: tuple[int, int | None] = (1, None)

    def __post_init__(self) -> None:
        """Statistics of labels are for methods that say so, and parts for those that have them."""
        if self.alone and not self.linear:
            raise ValueError("only a method that is a sum of one part per expert has parts that are alone")
        if LABELLED.intersection(self.needs) and not self.labels:
            raise ValueError(f"the statistics {', '.join(self.needs)} are of labels; declare labels=True")


@dataclass(frozen=True, slots=True)
class Searched:
    """A setting that can be tuned.

    Attributes:
        low: Smallest value.
        high: Largest.
        log: Whether it is searched by its logarithm.
        grid: Values that the paper or its code tried; may be empty.
    """

    low: float
    high: float
    log: bool = False
    grid: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no range, or has no logarithms."""
        numbers = (self.low, self.high, *self.grid)
        if not all(isinstance(number, int | float) for number in numbers) or not self.low < self.high:
            raise ValueError(f"{self} is no range of numbers; expected low < high, and a grid of numbers")
        if self.log and self.low <= 0:
            raise ValueError(f"{self} is searched by its logarithm, so low must be above 0; raise it, or set log=False")


def searched(low: float, high: float, *, log: bool = False, grid: tuple[float, ...] = ()) -> dict[str, Any]:
    """The ``json_schema_extra`` of a field that can be tuned, see `Searched`."""
    return {"search": {"low": low, "high": high, "log": log, "grid": list(grid)}}


class MethodSettings(Strict):
    """Settings of a merging method.

    Its docstring's first line says what it does, and its ``name`` is what search files and recipes call it.
    """

    facts: ClassVar[Facts]

    @classmethod
    def method_name(cls) -> str:
        """What search files call it."""
        return str(cls.model_fields["name"].default)

    @classmethod
    def tuned(cls) -> dict[str, Searched]:
        """Setting -> how it is searched, for those that can be tuned."""
        found = {}
        for key, field in cls.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and isinstance(how := extra.get("search"), dict):
                found[key] = Searched(how["low"], how["high"], how["log"], tuple(how["grid"]))  # type: ignore[arg-type]
        return found
