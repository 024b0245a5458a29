"""Builders of the methods in `optmerge.config.methods.optimised`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optmerge.config.methods.optimised import DogeConfig, WidenConfig, Wudi2Config, WudiConfig
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.building import Builders, weights_of
from optmerge.merging.methods.descent import Adam, Momentum
from optmerge.merging.methods.doge import Doge
from optmerge.merging.methods.jointly import Jointly, one_by_one
from optmerge.merging.methods.widen import Widen
from optmerge.merging.methods.wudi import Optimiser, descend, interference, low_rank_interference, minimum


def _widen(config: WidenConfig, experts: Sequence[str]) -> Method:
    return Widen(
        weights_of(config.name, config.weights, experts),
        ratio=config.ratio,
        calibration=config.calibration,
        others=config.others,
        embeddings=config.embeddings,
    )


def _doge(config: DogeConfig, experts: Sequence[str]) -> Method:
    return Doge(
        weights_of(config.name, config.weights, experts),
        eta=config.eta,
        density=config.density,
        scope=config.scope,
        subspace=config.subspace,
        tolerance=config.tolerance,
        project=config.project,
        steps=config.steps,
        lr=config.lr,
        others=config.others,
        embeddings=config.embeddings,
    )


def _wudi(config: WudiConfig, experts: Sequence[str]) -> Method:
    solve = (
        partial(minimum, tolerance=config.tolerance)
        if config.solver == "exact"
        else partial(descend, steps=config.steps, optimiser=partial(Adam, lr=config.lr))
    )
    return Jointly(
        weights_of(config.name, config.weights, experts),
        one_by_one(lambda task_vectors: solve(interference(task_vectors))),
        others=config.others,
        embeddings=config.embeddings,
    )


def _wudi_2(config: Wudi2Config, experts: Sequence[str]) -> Method:
    centred = config.experts == "full"
    optimiser: Optimiser
    if centred:
        optimiser = partial(Adam, lr=1e-5 if config.lr is None else config.lr)
    else:
        optimiser = partial(Momentum, lr=1e-4 if config.lr is None else config.lr, momentum=0.9)
    pose = partial(low_rank_interference, ranks=config.ranks, centred=centred, tolerance=config.tolerance)
    return Jointly(
        weights_of(config.name, config.weights, experts),
        one_by_one(lambda task_vectors: descend(pose(task_vectors), steps=config.steps, optimiser=optimiser)),
        others=config.others,
        embeddings=config.embeddings,
    )


OPTIMISED: Builders = {WidenConfig: _widen, DogeConfig: _doge, WudiConfig: _wudi, Wudi2Config: _wudi_2}
