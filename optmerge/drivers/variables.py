"""What a driver searches: named numbers with bounds and a start, checked once.

    variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.3, 0.3])
    variables.project([2.0, 0.5])        # float64[2]: [1.0, 0.5], read-only

`optmerge.drivers.base` has the interface that is given them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from optmerge.errors import ConfigError
from optmerge.records import Vector


def read_only(values: npt.ArrayLike) -> Vector:
    """A float64 copy that nobody can write to."""
    copy = np.array(values, dtype=np.float64)
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True, eq=False)
class Variables:
    """What is searched: named numbers with bounds and a start.

    Attributes:
        names: One name per variable, all different; a tuple is checked for it, what makes them on demand is trusted.
        lower: float64[d], the lowest values.
        upper: float64[d], the highest values, each above its ``lower``.
        start: float64[d], where the search starts; within bounds.
        norms: float64[d], how far a variable's unit moves the model: the norm of the task vectors that it scales. None
            where nobody measured them.
        known: Vectors worth trying beside the start, the most promising first; they are projected to bounds.
        curvature: float64[d], the mean squared gradient of the objective per variable, never negative: the diagonal of
            an empirical Fisher matrix. None where nobody measured gradients.
        cells: int64[d, 2], the tensor group and the expert (or other direction) that each variable alone weighs. None
            where one of them weighs several.
        integer: bool[d], which variables take whole numbers only; their bounds and start are such. None: no variable.
        choices: Variable -> what its whole numbers from 0 on stand for, where they have no order but are names.

    Raises:
        ConfigError: Bounds or start do not fit; the message names the variable.
    """

    names: Sequence[str]
    lower: Vector
    upper: Vector
    start: Vector
    norms: Vector | None = None
    known: Sequence[Vector] = ()
    curvature: Vector | None = None
    cells: npt.NDArray[np.int64] | None = None
    integer: npt.NDArray[np.bool_] | None = None
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.names, tuple) and len(set(self.names)) != len(self.names):
            raise ConfigError("Two variables of the search space have the same name.")
        for key in ("lower", "upper", "start"):
            values = read_only(getattr(self, key))
            if values.shape != (len(self.names),):
                raise ConfigError(f"{key} has shape {values.shape}, expected ({len(self.names)},): one per variable.")
            object.__setattr__(self, key, values)
        lower, upper, start = self.lower, self.upper, self.start
        ordered = np.isfinite(lower) & np.isfinite(upper) & (lower < upper)
        for bad in np.flatnonzero(~(ordered & (lower <= start) & (start <= upper)))[:1]:
            name, low, high = self.names[bad], lower[bad], upper[bad]
            if not ordered[bad]:
                raise ConfigError(
                    f"The bounds of {name} are [{low}, {high}]; expected two finite numbers, low then high."
                )
            raise ConfigError(f"The start of {name} is {start[bad]}, outside its bounds [{low}, {high}].")
        if self.norms is not None:
            object.__setattr__(self, "norms", read_only(np.broadcast_to(self.norms, lower.shape)))
        if self.curvature is not None:
            curvature = read_only(self.curvature)
            if curvature.shape != lower.shape or not (np.isfinite(curvature) & (curvature >= 0)).all():
                raise ConfigError(f"curvature needs {len(lower)} finite numbers of at least 0, one per variable.")
            object.__setattr__(self, "curvature", curvature)
        if self.integer is not None:
            object.__setattr__(self, "integer", np.broadcast_to(np.array(self.integer, dtype=np.bool_), lower.shape))
        self._check_whole()
        object.__setattr__(self, "known", tuple(self.project(vector) for vector in self.known))

    def __len__(self) -> int:
        return len(self.names)

    def project(self, vector: npt.ArrayLike) -> Vector:
        """The nearest vector within bounds and on whole numbers where the variables are such, read-only."""
        clipped = np.clip(np.asarray(vector, dtype=np.float64), self.lower, self.upper)
        return read_only(clipped if self.integer is None else np.where(self.integer, np.rint(clipped), clipped))

    def _check_whole(self) -> None:
        whole = np.zeros(len(self), dtype=np.bool_) if self.integer is None else self.integer
        for index in np.flatnonzero(whole).tolist():
            values = (float(self.lower[index]), float(self.upper[index]), float(self.start[index]))
            if not all(value.is_integer() for value in values):
                raise ConfigError(
                    f"{self.names[index]} takes whole numbers, but its bounds are [{values[0]}, {values[1]}] and its "
                    f"start is {values[2]}. Give whole ones."
                )
        for name, listed in self.choices.items():
            index = list(self.names).index(name)
            if not whole[index] or (self.lower[index], self.upper[index]) != (0, len(listed) - 1):
                raise ConfigError(f"{name} has {len(listed)} choices, so it takes whole numbers from 0 to that less 1.")
