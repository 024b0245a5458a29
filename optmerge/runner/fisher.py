"""How much the objective depends on each slice of each tensor, for chunks with `importance: fisher`.

    profile = fisher_profile(config, progress)      # parameter -> importance of its slices, in order
    profile["model.layers.0.mlp.up_proj.weight"]

Every tensor is cut into `SLICES` runs of rows, and each gets a coefficient for the sake of the measurement. The fit
split is dealt into parts, each part's mean objective gives one gradient by these coefficients at the start, and a
slice's importance is the mean of the squares, summed over directions: the empirical Fisher diagonal (Amari 1998,
section 2) of its coefficients. Weights' gradients are contracted with the task vectors as they come, so that no more
than one number per slice and direction is kept. Terms of the coefficients are left out.

The start is that of the space, or 0.3 where a baseline will give it. The numbers are remembered by what they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from optmerge.config.drivers import AdamConfig
from optmerge.config.spaces import ChunksConfig
from optmerge.errors import ConfigError, RunFailed
from optmerge.models.cache import recall, remember
from optmerge.models.device import release_memory
from optmerge.objective.objective import Objective
from optmerge.records import Evaluation

if TYPE_CHECKING:
    from optmerge.config.schema import SearchConfig
    from optmerge.models.spread import Spread
    from optmerge.records import Progress
    from optmerge.runner.evaluator import Evaluator, Measurement
    from optmerge.runner.problem import Problem

SLICES = 16  # of a tensor, at most
PARTS = 32  # of the fit split, at most

Profile = Mapping[str, Sequence[float]]


def fisher_profile(config: SearchConfig, progress: Progress | None = None, spread: Spread | None = None) -> Profile:
    """The importance of every tensor's slices; the models are opened for it, and closed again.

    Args:
        config: A search without a schedule, with absolute references.
        progress: Told of parts.
        spread: Where the model is to be; None lets it be found out.

    Raises:
        ConfigError: A term of the objective has no gradient.
        RunFailed: The model cannot be judged at the start.
        UserError: See `open_problem`.
    """
    from optmerge.runner.evaluator import Evaluator
    from optmerge.runner.problem import open_problem
    from optmerge.runner.teachers import Teachers

    without = Objective(config.objective, list(config.tasks), dict.fromkeys(config.tasks)).without_gradient
    if without:
        raise ConfigError(
            f"space.chunks.importance is fisher, which needs the objective's gradient, and {', '.join(without)} has "
            "none. Use importance: task-vectors, or an objective with a gradient."
        )
    fine = ChunksConfig(importance="task-vectors", budget=float(SLICES), power=0.0)  # every tensor alike
    probe = config.model_copy(
        update={"space": config.space.model_copy(update={"chunks": fine}), "driver": AdamConfig(), "schedule": None}
    )
    devices, layout = (None, None) if spread is None else (spread.devices, spread.layout)
    problem = open_problem(probe, progress=progress, devices=devices, layout=layout)
    key = _key(problem)
    known = recall("fisher", key)
    if known is None:
        known = _measured(problem, Evaluator(problem, Teachers.make(problem, progress)), progress)
        remember("fisher", key, known)
    device = problem.device
    del problem  # its resident model, before the search allocates one
    release_memory(device)
    return known


def _measured(problem: Problem, evaluator: Evaluator, progress: Progress | None) -> dict[str, list[float]]:
    table = problem.expand(problem.space.start)
    base = _sound(evaluator.attempt(lambda: evaluator.measure(np.zeros_like(table), "fit", objective=True), "fit"))
    problem.objective.on("fit").set_normalisers("fit", base.means)
    sizes = problem.calibration.fit_sizes()
    count = min([PARTS, *sizes.values()])
    squares = np.zeros(len(table))
    for part in range(count):
        examples = {task: range(part, size, count) for task, size in sizes.items()}
        measure = partial(evaluator.measure, table, "fit", examples=examples, gradient=True)
        gradient = _sound(evaluator.attempt(measure, "fit", examples=examples)).table_gradient
        assert gradient is not None, "a gradient was asked for"
        squares += (gradient[:, problem.columns] ** 2).sum(axis=1) / count
        if progress:
            progress("fisher", part + 1, count)
    if not np.isfinite(squares).all():
        raise RunFailed(
            "space.chunks.importance is fisher, and the objective's gradient at the start is not finite. Start "
            "elsewhere (space.start), or use importance: task-vectors."
        )
    return {
        group.parameters[0]: squares[at].tolist()
        for group, at in zip(problem.space.groups, problem.space.rows, strict=True)
    }


def _sound(measured: Measurement | Evaluation) -> Measurement:
    if isinstance(measured, Evaluation):
        raise RunFailed(
            f"space.chunks.importance is fisher, and the model cannot be judged at the start: {measured.error}."
        )
    return measured


def _key(problem: Problem) -> str:
    from optmerge.runner.terms import term_hashes

    facts = [
        problem.identity("fit"),
        [[direction.kind, direction.expert, problem.deltas.key(direction)] for direction in problem.directions],
        problem.columns,
        problem.config.objective.model_dump(),
        term_hashes(problem.config.objective, problem.objective),
        hashlib.sha256(problem.expand(problem.space.start).tobytes()).hexdigest(),
        [SLICES, PARTS],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
