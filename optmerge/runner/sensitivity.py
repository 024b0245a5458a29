"""How sensitive the objective is to each variable at a point: its empirical Fisher diagonal, and how far it may move.

    found = measure_sensitivity(evaluator, vector, passes=200)
    found.variables[0].name, .fisher, .fisher_error, .move

The fit split is dealt into `BATCHES` parts, and each part's mean objective gives one gradient by the variables. The
Fisher diagonal is the mean of their squares (so of batches, not of single examples; Amari 1998 has the expectation over
examples), its error the standard error over batches.

How far a variable may move comes from the second-order model along its axis, rise = |g| m + h m^2 / 2, with g the
gradient on all of fit and h the diagonal of the Gauss-Newton matrix (`optmerge.runner.curvature`). The squares of
gradients are no curvature near an optimum of a divergence, where every example's gradient vanishes and the curvature
does not. The model is checked where it matters most: a few of the most confined variables are moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optmerge.errors import RunError
from optmerge.records import Evaluation, Progress, Vector

if TYPE_CHECKING:
    from optmerge.runner.evaluator import Evaluator
    from optmerge.runner.problem import Problem

BATCHES = 16
RISE = 0.01  # share of the objective that a move may cost
LARGEST = 2000  # variables of which a matrix is made, and that are told one by one
CHECKED = 3  # variables that are moved, to see whether the model holds


@dataclass(frozen=True)
class Variable:
    """One variable at the best point.

    Attributes:
        value: Where it is.
        gradient: Of the objective, mean over batches.
        gradient_error: Its standard error.
        fisher: Mean square of the batches' gradients.
        fisher_error: Its standard error.
        curvature: Second derivative, of the Gauss-Newton matrix; None where it was not measured.
        move: How far it may move in the worse direction until the objective has risen by `RISE` of its value; None
            where that is not known, or where nothing depends on it.
    """

    name: str
    value: float
    gradient: float
    gradient_error: float
    fisher: float
    fisher_error: float
    curvature: float | None
    move: float | None


@dataclass(frozen=True)
class Check:
    """A variable that was moved by its ``move``: the rise that was found, as a share of the objective (`RISE`)."""

    name: str
    moved: float
    rise: float


@dataclass(frozen=True)
class Sensitivity:
    """What `measure_sensitivity` found.

    Attributes:
        objective: On all of fit.
        batches: How many parts of fit have given a gradient.
        curvature_examples: Examples per task that the curvature is of; 0 where it was not measured.
        why_no_curvature: Why it was not; "" where it was.
        dimension: How many variables there are, choices apart.
        variables: The most sensitive ones by ``fisher``, at most `LARGEST`.
        checks: Of the second-order model.
    """

    objective: float
    batches: int
    curvature_examples: int
    why_no_curvature: str
    dimension: int
    variables: tuple[Variable, ...]
    checks: tuple[Check, ...]


def why_insensitive(problem: Problem) -> str:
    """Why there is no gradient to measure; "" where there is one."""
    if not problem.objective.differentiable:
        return f"the objective's {' and '.join(problem.objective.without_gradient)} has no gradient"
    return ""


def measure_sensitivity(
    evaluator: Evaluator,
    vector: Vector,
    *,
    passes: int = 200,
    progress: Progress = lambda stage, done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Sensitivity:
    """Measure around ``vector`` on the fit split.

    Args:
        evaluator: Its normalisers are set, and its geometry where there are terms of the coefficients.
        vector: float64[d].
        passes: The most forward passes over fit for the curvature; its examples are thinned out to fit.
        progress: Told of batches.
        tell: Told what takes how long.

    Raises:
        RunError: A gradient cannot be had.
    """
    problem = evaluator.problem
    sizes = problem.calibration.fit_sizes()
    begun = time.perf_counter()
    whole = _sound(evaluator.evaluate(vector, "fit", gradient=True))
    gradient_seconds = time.perf_counter() - begun
    assert whole.gradient is not None
    parts = deal(sizes, min(BATCHES, *sizes.values()))
    tell(f"sensitivity: gradients of {len(parts)} parts of fit, about {gradient_seconds:.0f} s.")
    gradients = _batch_gradients(evaluator, vector, parts, progress)
    some = thinned(sizes, passes / (len(vector) + 1)) if len(vector) <= LARGEST else {}
    why = _why_no_curvature(problem, whole.value, some)
    curvature = None
    if not why:
        share = sum(map(len, some.values())) / sum(sizes.values())
        tell(
            f"curvature: {len(vector) + 1} forward passes over {share:.0%} of fit, "
            f"about {(len(vector) + 1) * share * gradient_seconds / 3:.0f} s."
        )
        matrix = _sound(evaluator.evaluate(vector, "fit", examples=some, jacobian=True)).curvature
        assert matrix is not None
        curvature = np.diag(matrix)
    integer = problem.space.integer
    chosen: set[int] = set() if integer is None else set(np.flatnonzero(integer).tolist())
    moves = None if curvature is None else allowed_moves(whole.gradient, curvature, RISE * abs(whole.value))
    return Sensitivity(
        objective=whole.value,
        batches=len(parts),
        curvature_examples=0 if curvature is None else max(map(len, some.values())),
        why_no_curvature=why,
        dimension=len(vector) - len(chosen),
        variables=_variables(problem.space.names, vector, gradients, curvature, moves, chosen),
        checks=() if moves is None else _checks(evaluator, vector, whole, moves),
    )


def allowed_moves(gradient: Vector, curvature: Vector, rise: float) -> Vector:
    """The m > 0 with |g| m + h m^2 / 2 = rise, for every variable; infinite where neither bends nor slopes.

    Args:
        gradient: g, float64[d].
        curvature: h, float64[d], 0 or more.
        rise: More than 0.

    >>> allowed_moves(np.array([0.0, 2.0]), np.array([2.0, 0.0]), 1.0).tolist()
    [1.0, 0.5]
    """
    slope = np.abs(gradient)
    bottom = slope + np.sqrt(slope**2 + 2 * np.maximum(curvature, 0.0) * rise)
    with np.errstate(divide="ignore"):
        moves: Vector = 2 * rise / bottom  # the root without a difference of near numbers
    return moves


def deal(sizes: Mapping[str, int], count: int) -> list[dict[str, tuple[int, ...]]]:
    """Every task's examples dealt into so many parts, one by one."""
    return [{task: tuple(range(part, size, count)) for task, size in sizes.items()} for part in range(count)]


def thinned(sizes: Mapping[str, int], share: float) -> dict[str, tuple[int, ...]]:
    """About this share of every task's examples, evenly spaced; empty where that is less than one of some task."""
    counts = {task: min(size, int(size * share)) for task, size in sizes.items()}
    if min(counts.values()) < 1:
        return {}
    return {task: tuple(n * sizes[task] // count for n in range(count)) for task, count in counts.items()}


def _batch_gradients(
    evaluator: Evaluator, vector: Vector, parts: Sequence[Mapping[str, tuple[int, ...]]], progress: Progress
) -> Vector:
    """float64[B, d]: of every part's mean objective, terms of the coefficients left out."""
    table = evaluator.problem.expand(vector)
    rows = []
    for done, part in enumerate(parts, 1):
        measured = evaluator.attempt(
            lambda part=part: evaluator.measure(table, "fit", examples=part, gradient=True),  # type: ignore[misc]
            "fit",
            examples=part,
        )
        judged = _sound(measured if isinstance(measured, Evaluation) else evaluator.judge(measured, "fit", vector))
        assert judged.gradient is not None
        rows.append(judged.gradient)
        progress("sensitivity", done, len(parts))
    return np.stack(rows)


def _why_no_curvature(problem: Problem, value: float, some: Mapping[str, tuple[int, ...]]) -> str:
    """Why nothing can be said of moves; "" where it can."""
    summaries = [term.name for term in problem.objective.terms if term.summary]
    if summaries:
        return f"the objective's {' and '.join(summaries)} is no mean over examples"
    if value == 0.0:
        return "the objective is 0 here, and a move is told by what a share of it allows"
    if len(problem.space.names) > LARGEST:
        return f"there are more than {LARGEST} variables"
    return "" if some else "it takes more forward passes than were allowed"


def _variables(
    names: Sequence[str],
    vector: Vector,
    gradients: Vector,
    curvature: Vector | None,
    moves: Vector | None,
    chosen: Collection[int],
) -> tuple[Variable, ...]:
    """All but those that are ``chosen`` from a list, which have no slope."""
    fisher = (gradients**2).mean(axis=0)
    root = np.sqrt(len(gradients))
    freedom = min(1, len(gradients) - 1)  # of one batch nothing is known about the spread, and 0 is said
    spread = [values.std(axis=0, ddof=freedom) / root for values in (gradients, gradients**2)]
    order = [at for at in np.argsort(-fisher, kind="stable").tolist() if at not in chosen][:LARGEST]
    return tuple(
        Variable(
            names[at],
            float(vector[at]),
            float(gradients[:, at].mean()),
            float(spread[0][at]),
            float(fisher[at]),
            float(spread[1][at]),
            None if curvature is None else float(curvature[at]),
            None if moves is None or not np.isfinite(moves[at]) else float(moves[at]),
        )
        for at in order
    )


def _checks(evaluator: Evaluator, vector: Vector, whole: Evaluation, moves: Vector) -> tuple[Check, ...]:
    space = evaluator.problem.space
    assert whole.gradient is not None
    found = []
    for at in np.argsort(moves, kind="stable").tolist():
        step = float(moves[at]) if whole.gradient[at] >= 0 else -float(moves[at])
        moved = vector.copy()
        moved[at] += step
        if not space.lower[at] <= moved[at] <= space.upper[at]:
            continue
        judged = evaluator.evaluate(moved, "fit")
        if not judged.failed:
            found.append(Check(space.names[at], step, (judged.value - whole.value) / abs(whole.value)))
        if len(found) == CHECKED:
            break
    return tuple(found)


def _sound(evaluation: Evaluation) -> Evaluation:
    if evaluation.failed:
        raise RunError(f"The best recipe has no gradient on fit any more: {evaluation.error}.")
    return evaluation
