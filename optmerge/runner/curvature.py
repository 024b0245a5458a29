"""The Gauss-Newton matrix of the objective by a search's variables, from secants of the model's outputs.

    matrix = measure_curvature(evaluator, vector, "fit", means)      # float64[d, d], no eigenvalue below 0

For every variable the model is written once more, a little further along it, and judged forward only:

    G_ij = sum over examples and terms of share * sum_c w_c (F_c(x + h_i e_i) - F_c(x)) (F_c(x + h_j e_j) - F_c(x))
           / (h_i h_j)

with the weights w and features F of `optmerge.objective.curvature`, and the share that the example has in the objective
there. So a matrix costs d + 1 forward passes over the examples, and no backward pass. Features of d variables are held
for a block of batches only (`BLOCK` bytes), and multiplied into the matrix on the device: what is held depends neither
on how many examples there are, nor on the size of the model. The step h is within bounds, away from the nearer one, and
of a size that the model's precision can tell from its rounding.

A secant rather than forward-mode differentiation, because every architecture and every kernel has it, and since it goes
through the engine and the space, whatever lies between a variable and a weight. It is off by h/2 times the second
derivative; the gradient beside it is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optmerge.config.drivers import CURVATURE_DRIVERS
from optmerge.errors import ConfigError
from optmerge.objective.curvature import Metric, metric_of
from optmerge.records import SplitName, Vector

if TYPE_CHECKING:
    from optmerge.calibration.batches import Batch
    from optmerge.objective.geometry import Geometry
    from optmerge.objective.objective import Objective
    from optmerge.runner.evaluator import Evaluator
    from optmerge.runner.look import Examples
    from optmerge.runner.problem import Problem

Matrix = npt.NDArray[np.float64]

BLOCK = 1 << 27  # bytes of features, of all variables, that are held at a time (one batch's at least)
COLUMNS = 1 << 16  # of a block that are multiplied at a time, in fp64
STEPS = {
    torch.float64: 2.0**-20,
    torch.float32: 2.0**-7,
    torch.bfloat16: 2.0**-3,
    torch.float16: 2.0**-3,
}
_TABLE_STEP = 2.0**-20  # of the table by a variable, in fp64


def require_curvature(driver: str, objective: Objective) -> None:
    """Refuse an objective without a Gauss-Newton matrix.

    Raises:
        ConfigError: A term's value is not a mean over examples.
    """
    without = [term.name for term in objective.terms if term.summary]
    if driver in CURVATURE_DRIVERS and without:
        raise ConfigError(
            f"driver is {driver}, whose matrix is a sum over examples, and the objective's {' and '.join(without)} is "
            "a function of means over all of them. Use the driver lbfgs or adam, or terms such as expert-kl."
        )


def measure_curvature(
    evaluator: Evaluator,
    vector: Vector,
    split: SplitName,
    means: Mapping[str, Mapping[str, float]],
    *,
    examples: Examples = None,
) -> Matrix:
    """The Gauss-Newton matrix at ``vector``; exceptions pass through.

    Where the tasks' weights depend on their parts, they count as what they are here. A term of negative weight adds
    nothing. The resident model is left at a point near by; the engine knows which.

    Args:
        evaluator: Of the search; its normalisers are set.
        vector: float64[d].
        split: Which split to look at.
        means: Task -> term -> mean at ``vector``, raw.
        examples: Task -> positions; None is the whole split.
    """
    problem = evaluator.problem
    composed = problem.objective.on(split)
    tasks = {task: weight for task, weight in composed.weigh(split, means).items() if weight > 0.0}
    steps = _steps(problem, vector)
    total = torch.zeros(len(vector), len(vector), dtype=torch.float64, device=_wide(problem.device))
    batches = [
        (task, batch) for task in tasks for batch in evaluator.batches(task, split, examples, evaluator.batch_tokens)
    ]
    shares = {task: _shares(composed, split, task, tasks[task], batches) for task in tasks}
    with torch.no_grad():
        for block in _blocks(evaluator, vector, split, shares, batches):
            roots = torch.zeros(len(vector), sum(look.size for look in block), device=problem.device)
            for row, step in enumerate(steps.tolist()):
                moved = vector.copy()
                moved[row] += step
                evaluator.engine.apply(problem.expand(moved))
                at = 0
                for look in block:
                    roots[row, at : at + look.size] = look.slopes(evaluator, step)
                    at += look.size
            for part in torch.split(roots, COLUMNS, 1):
                wide = part.to(total)  # a product in fp32, or in less by TF32, would have eigenvalues below 0
                total += wide @ wide.T
    matrix: Matrix = total.cpu().numpy()
    if split == "fit" and problem.objective.regularisers:
        assert evaluator.geometry is not None, "terms of the coefficients need the geometry of the search"
        matrix = matrix + _regulariser_curvature(problem, vector, evaluator.geometry)
    return 0.5 * (matrix + matrix.T)


@dataclass(frozen=True, eq=False)
class _Look:
    """One batch where the matrix is wanted: its metrics, their features there, and the roots of their weights."""

    task: str
    batch: Batch  # on the device
    layers: Sequence[int]
    metrics: Sequence[Metric]
    features: Sequence[Tensor]
    roots: Sequence[Tensor]

    @property
    def size(self) -> int:
        """Features of one variable."""
        return sum(root.numel() for root in self.roots)

    def slopes(self, evaluator: Evaluator, step: float) -> Tensor:
        """What the batch adds to a variable's row, flat: root of the weight times the feature's secant."""
        outputs = evaluator.problem.outputs(self.task, self.batch, self.layers)
        pieces = []
        for metric, features, root in zip(self.metrics, self.features, self.roots, strict=True):
            moved = (metric.features(outputs) - features) / step
            pieces.append(torch.where(root > 0, moved * root, 0.0).reshape(-1))  # an impossible class has -inf - -inf
        return torch.cat(pieces).float()


def _blocks(
    evaluator: Evaluator,
    vector: Vector,
    split: SplitName,
    shares: Mapping[str, Mapping[str, float]],
    batches: Sequence[tuple[str, Batch]],
) -> Iterator[list[_Look]]:
    """Batches seen at ``vector``, so many at a time as have features for `BLOCK` bytes."""
    problem, held = evaluator.problem, 0
    block: list[_Look] = []
    here = problem.expand(vector)
    terms = [term for term in problem.objective.on(split).terms if any(own[term.name] > 0 for own in shares.values())]
    layers = sorted({layer for term in terms for layer in term.layers(problem.family.num_layers)})
    for task, batch in batches if terms else ():
        evaluator.engine.apply(here)  # nothing to do but behind a block
        teacher = evaluator.teachers.batch(task, split, batch)
        moved = batch.to(problem.device)
        outputs = problem.outputs(task, moved, layers)
        used = [term for term in terms if shares[task][term.name] > 0.0]
        metrics = [metric_of(term, outputs, moved, teacher) for term in used]
        roots = [(metric.weights * shares[task][term.name]).sqrt() for term, metric in zip(used, metrics, strict=True)]
        look = _Look(task, moved, layers, metrics, [metric.features(outputs) for metric in metrics], roots)
        size = 4 * len(vector) * look.size
        if block and held + size > BLOCK:
            yield block
            block, held = [], 0
        block.append(look)
        held += size
    if block:
        yield block


def _shares(
    composed: Objective, split: SplitName, task: str, weight: float, batches: Sequence[tuple[str, Batch]]
) -> dict[str, float]:
    """Term -> what one more of its cost in one example of the task adds to the objective."""
    count = sum(batch.size for name, batch in batches if name == task)
    values = {term.name: torch.zeros(1, dtype=torch.float64, requires_grad=True) for term in composed.terms}
    composed.loss(split, task, values, count, weight=weight).backward()  # type: ignore[no-untyped-call]
    shares = {}
    for term in composed.terms:
        slope = values[term.name].grad
        assert slope is not None
        shares[term.name] = -float(slope) if term.higher_is_better else float(slope)
    return shares


def _steps(problem: Problem, vector: Vector) -> Vector:
    """How far each variable is moved, and to which side: upwards where there is room."""
    size = STEPS[problem.dtype]
    up, down = problem.space.upper - vector, vector - problem.space.lower
    longest = np.minimum(size, np.maximum(up, down))
    steps: Vector = np.where(up >= longest, longest, -longest)
    return steps


def _regulariser_curvature(problem: Problem, vector: Vector, geometry: Geometry) -> Matrix:
    """P' H P of the terms of the coefficients, with H their Hessian and P how the table follows a variable.

    What would be negative curvature counts as none.
    """
    space, objective = problem.space, problem.objective
    leaf = torch.tensor(space.decode(vector), dtype=torch.float64, requires_grad=True)
    weighted = [objective.configs[term.name].weight * term.value(leaf, geometry) for term in objective.regularisers]
    matrix = np.zeros((len(vector), len(vector)))
    total = torch.stack(weighted).sum()
    if not total.requires_grad:
        return matrix
    (slope,) = torch.autograd.grad(total, leaf, create_graph=True, allow_unused=True)
    if slope is None or not slope.requires_grad:
        return matrix  # linear, or nothing that is searched
    for row, step in enumerate(_steps_of_table(space.lower, space.upper, vector).tolist()):
        moved = vector.copy()
        moved[row] += step
        along = torch.from_numpy((space.decode(moved) - space.decode(vector)) / step)
        (bent,) = torch.autograd.grad(slope, leaf, along, retain_graph=True, allow_unused=True)
        if bent is not None:
            matrix[:, row] = space.pull_back(bent.numpy(), vector)
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    positive: Matrix = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return positive


def _steps_of_table(lower: Vector, upper: Vector, vector: Vector) -> Vector:
    steps: Vector = np.where(upper - vector >= vector - lower, _TABLE_STEP, -_TABLE_STEP)
    return steps


def _wide(device: torch.device) -> torch.device:
    """Where fp64 sums are kept: the device, unless it has no fp64."""
    return torch.device("cpu") if device.type == "mps" else device
