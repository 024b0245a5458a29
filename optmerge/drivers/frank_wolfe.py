"""Frank-Wolfe: the search stays in the convex hull of the base, the experts and the start, and moves towards vertices.

In: value and gradient of the whole fit split. Out: one trial point a generation.

    driver = FrankWolfeDriver(config, variables, seed=seed, fit_sizes={"topic": 180}, budget=60)

The linear oracle asks which vertex the gradient points at: min over experts k of <dL/dW, tau_k>, the base's being 0. By
the chain rule that is the gradient by the coefficients itself, summed over the tensor groups that share a vertex: one
each (``layer-wise``: a product of hulls, block-coordinate Frank-Wolfe), or all of them (``task-wise``). Sums are not
normalised: a group counts as much as moving it would change the loss.

*Hard* (Frank & Wolfe 1956; Jaggi 2013, algorithm 1) moves towards the vertex. *Soft* takes the vertices into a set and
moves the weights of the set's members by projected gradients before the oracle is asked again; a member whose weight is
0 leaves (fully corrective Frank-Wolfe, Jaggi 2013, algorithm 3, with so many steps of correction). Where the start lies
outside the hull of base and experts, a group's weights may add up to what they do there, and the gap is over all of
that.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt

from optmerge.config.frank_wolfe import FrankWolfeConfig
from optmerge.drivers.gradient import norm, share_at_bounds, usable
from optmerge.drivers.simplex import project_capped
from optmerge.drivers.state import State
from optmerge.drivers.trial import Point, TrialDriver
from optmerge.drivers.variables import read_only
from optmerge.records import Evaluation, Vector

REJECTED = 30  # trials in a row that did not fall as the smoothness allows end the search
EASED = 0.5  # of the smoothness constant, tried after every accepted step (Pedregosa et al. 2020, eta)
FIRST_STEP = 0.5  # how far towards the first vertex the first trial goes


class FrankWolfeDriver(TrialDriver):
    """Frank-Wolfe with the open-loop step 2 / (t + 2), or with backtracking (Pedregosa et al. 2020, algorithm 1).

    Backtracking: with L the smoothness that is assumed, a trial at x + s is accepted when f(x + s) <= f(x) + <g, s> +
    L |s|^2 / 2, or when the slope along s is still downwards there (so that f has fallen, if it is convex, whatever
    noise the value has); otherwise L is doubled.

    >>> import numpy as np
    >>> from optmerge.drivers import Variables
    >>> variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.1, 0.1])
    >>> driver = FrankWolfeDriver(
    ...     FrankWolfeConfig(variant="hard", step="open-loop"),
    ...     variables,
    ...     seed=np.random.SeedSequence(0),
    ...     fit_sizes={},
    ...     budget=9,
    ... )
    >>> asked = driver.ask()
    >>> driver.tell(asked, [Evaluation(1.0, gradient=np.array([-1.0, -2.0]))])
    >>> driver.ask()[0].vector.tolist()
    [0.0, 1.0]
    """

    name: ClassVar[str] = "frank-wolfe"
    config: FrankWolfeConfig

    def _set_up(self) -> None:
        config, variables = self.config, self.variables
        cells = variables.cells
        if cells is None:  # one hull, of which each variable is an expert
            cells = np.stack([np.zeros(len(variables), dtype=np.int64), np.arange(len(variables))], axis=1)
        self._group, self._direction = cells[:, 0], cells[:, 1]
        self._origin = np.clip(np.zeros(len(variables)), variables.lower, variables.upper)
        self._ends = np.clip(np.full(len(variables), config.scale), variables.lower, variables.upper)
        self._members = [np.flatnonzero(self._group == group) for group in np.unique(self._group)]
        self._rounds = 0
        super()._set_up()

    def _begin(self, vector: Vector) -> None:
        super()._begin(vector)
        # The soft hull is the set of sums within `_rooms`, grown so that it holds the start.
        self._low = np.minimum(self._origin, vector)
        self._high = np.maximum(self._ends, vector)
        self._rooms = [max(self.config.scale, float((vector - self._low)[members].sum())) for members in self._members]
        self._smoothness: float | None = None  # L
        self._active = vector > self._low
        self._corrections = 0  # steps of the weights since the oracle was asked
        self._rejected = 0
        self._gap = np.inf

    def info(self) -> dict[str, float]:
        """``at_bounds``; after the first evaluation ``gap``, ``gradient_norm``, how many variables are ``active``."""
        return {"at_bounds": share_at_bounds(self.variables, self._trial)} | self._info

    def stop(self) -> dict[str, str]:
        """No point that the driver could go to is better to first order, or no trial falls."""
        if self._gap <= self.config.tolerance:
            return {"converged": f"no step promises a fall of more than {self.config.tolerance:g} (Frank-Wolfe gap)"}
        if self._rejected >= REJECTED:
            return {"stalled": f"{REJECTED} trials in a row found no lower value"}
        return {}

    def _tell(self, evaluations: list[Evaluation]) -> None:
        told = evaluations[0] if evaluations and usable(evaluations[0].gradient) else None
        if told is None:
            if self._base is not None:
                self._halve()
            return
        gradient = np.asarray(told.gradient, dtype=np.float64)
        if self._base is not None and self.config.step == "backtracking":
            vector, best, slope, _ = self._base
            step = self._trial - vector
            assert self._smoothness is not None
            allowed = best + float(slope @ step) + 0.5 * self._smoothness * float(step @ step)
            if not (told.value <= allowed or gradient @ step <= 0):
                self._rejected += 1
                self._smoothness *= 2.0
                self._propose()
                return
            self._smoothness *= EASED
        if self._base is not None:
            self._rounds += 1
        self._rejected = 0
        self._base = Point(self._trial, told.value, read_only(gradient))
        if self.config.variant == "soft" and self._corrections % self.config.corrections == 0:
            self._take_vertices(gradient)
        self._corrections += 1
        self._propose()

    def _halve(self) -> None:
        """Half the step: there is no value here, which says nothing of the smoothness."""
        assert self._base is not None
        self._trial = self.variables.project(self._base.vector + 0.5 * (self._trial - self._base.vector))

    def _propose(self) -> None:
        """The next trial from the base."""
        assert self._base is not None
        vector, _, gradient, _ = self._base
        along = (self._corner(gradient) if self.config.variant == "soft" else self._vertex(gradient)) - vector
        self._gap = max(0.0, -float(gradient @ along))
        self._info = {
            "gap": self._gap,
            "gradient_norm": norm(gradient),
            "active": float((vector > self._low).sum()),
        }
        length = float(along @ along)
        if self._smoothness is None:
            self._smoothness = self._gap / (self._scale * FIRST_STEP * length) if self._gap > 0 else 1.0
        if self.config.variant == "soft":
            moved = self._weights(vector - gradient / self._smoothness)
        elif self.config.step == "open-loop":
            moved = vector + 2.0 / (self._rounds + 2.0) * along  # Jaggi 2013, algorithm 1
        else:
            moved = vector + min(1.0, self._gap / (self._smoothness * length)) * along if length > 0 else vector
        self._trial = self.variables.project(moved)

    def _scores(self, gradient: Vector) -> Vector:
        """What the oracle compares, float64[d]: a whole step along a variable to first order, and its expert's sum."""
        reach: Vector = gradient * (self._ends - self._origin)
        if self.config.oracle == "layer-wise":
            return reach
        sums: Vector = np.bincount(self._direction, weights=reach)[self._direction].astype(np.float64)
        return sums

    def _vertex(self, gradient: Vector) -> Vector:
        """The best vertex to first order: in every group one expert, or the base."""
        scores = self._scores(gradient)
        vertex = self._origin.copy()
        if self.config.oracle == "task-wise":
            best = scores.min()
            chosen = (scores == best) & (self._direction == self._direction[int(scores.argmin())])
            if best < 0:
                vertex[chosen] = self._ends[chosen]
            return vertex
        for members in self._members:
            best = members[int(scores[members].argmin())]
            if scores[best] < 0:
                vertex[best] = self._ends[best]
        return vertex

    def _corner(self, gradient: Vector) -> Vector:
        """The best point to first order of all that `_weights` may reach, with whom the oracle would take in.

        It is the best vertex where that hull is the vertices' own. Where the start lies outside of that, or bounds end
        before a vertex, it fills the room with one expert after the other.
        """
        corner = self._low.copy()
        able = (self._active | (self._scores(gradient) < 0)) & (gradient < 0)
        for members, room in zip(self._members, self._rooms, strict=True):
            left = room
            for place in members[np.argsort(gradient[members], kind="stable")]:
                if able[place]:
                    filled = min(float(self._high[place] - self._low[place]), left)
                    corner[place] += filled
                    left -= filled
        return corner

    def _take_vertices(self, gradient: Vector) -> None:
        """Members without weight leave; the best ``top`` others that promise anything come in."""
        assert self._base is not None
        self._active = self._base.vector > self._low
        scores = self._scores(gradient)
        if self.config.oracle == "task-wise":
            experts = np.unique(self._direction).tolist()
            values = {
                expert: float(scores[self._direction == expert][0])
                for expert in experts
                if not self._active[self._direction == expert].all()
            }
            taken = [
                expert for expert in sorted(values, key=values.__getitem__)[: self.config.top] if values[expert] < 0
            ]
            self._active |= np.isin(self._direction, taken)
            return
        for members in self._members:
            outside = members[~self._active[members]]
            best = outside[np.argsort(scores[outside], kind="stable")[: self.config.top]]
            self._active[best[scores[best] < 0]] = True

    def _weights(self, moved: Vector) -> Vector:
        """The nearest point of the hull of the set's members; what is not in the set stays."""
        assert self._base is not None
        found = self._base.vector.copy()
        for members, room in zip(self._members, self._rooms, strict=True):
            active = members[self._active[members]]
            rest = float((found - self._low)[members].sum() - (found - self._low)[active].sum())
            caps = (self._high - self._low)[active]
            found[active] = self._low[active] + project_capped(moved[active] - self._low[active], caps, room - rest)
        return found

    def _memory(self) -> State:
        return {
            "low": self._low,
            "high": self._high,
            "rooms": np.array(self._rooms),
            "active": self._active,
            "smoothness": self._smoothness,
            "scale": self._scale,
            "counts": [self._rounds, self._corrections, self._rejected],
            "gap": float(self._gap),
        }

    def _recall(self, state: State) -> None:
        self._low, self._high = (cast(Vector, state[key]) for key in ("low", "high"))
        self._rooms = cast(Vector, state["rooms"]).tolist()
        self._active = cast("npt.NDArray[np.bool_]", state["active"])
        self._smoothness = cast("float | None", state["smoothness"])
        self._scale = cast(float, state["scale"])
        self._rounds, self._corrections, self._rejected = cast("list[int]", state["counts"])
        self._gap = cast(float, state["gap"])
