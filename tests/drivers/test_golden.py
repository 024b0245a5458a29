"""The first values of each driver under a fixed seed, pinned: a change here changes what everybody's searches find.

To pin a new driver or an intended change: ``python -m tests.drivers.test_golden``, and say so in the changelog.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optmerge.config.base import Strict
from optmerge.config.drivers import AdamConfig, AdamWConfig, CmaConfig, OptunaConfig, SgdConfig
from optmerge.config.frank_wolfe import FrankWolfeConfig
from optmerge.config.gradient_drivers import LbfgsConfig, LevenbergMarquardtConfig
from optmerge.config.natural_niches import NaturalNichesConfig
from optmerge.drivers import driver_type
from optmerge.drivers.quadratic import begin, quadratic, run
from optmerge.records import Candidate

FOLDER = Path(__file__).parent / "golden"
LENGTH = 12
PINNED: dict[str, tuple[Strict, float]] = {  # configuration, relative tolerance
    "adam": (AdamConfig(lr=0.1), 0.0),
    "adam-batches": (AdamConfig(lr=0.1, batch=3), 0.0),
    "adamw": (AdamWConfig(lr=0.1, weight_decay=0.1), 0.0),
    "sgd": (SgdConfig(), 0.0),
    "lbfgs": (LbfgsConfig(step=1e-4), 1e-12),  # its first line; a quadratic is solved on the next
    "levenberg-marquardt": (LevenbergMarquardtConfig(damping=1000.0), 1e-9),  # a linear solve
    "sgd-nesterov": (SgdConfig(nesterov=True, clip=0.3), 0.0),
    "cma": (CmaConfig(sigma=0.2), 1e-12),  # eigenvectors and BLAS differ in the last places between machines
    "cma-diagonal": (CmaConfig(sigma=0.2, covariance="diagonal", population=5), 1e-12),
    "cma-batches": (CmaConfig(sigma=0.2, batch=3), 1e-12),
    "cma-folding": (CmaConfig(sigma=0.5, bounds="fold"), 1e-12),
    "optuna-tpe": (OptunaConfig(startup=4), 1e-12),  # so do exponentials and error functions
    "optuna-gp": (OptunaConfig(sampler="gp", startup=9), 0.02),  # and what a fit of length scales ends at
    "optuna-sobol": (OptunaConfig(sampler="sobol"), 1e-12),
    "optuna-wilcoxon": (OptunaConfig(pruner="wilcoxon", startup=4, rungs=2), 1e-12),
    "optuna-halving": (OptunaConfig(pruner="successive-halving", startup=4, reduction=2), 1e-12),
    "optuna-random": (OptunaConfig(sampler="random"), 1e-12),
    "optuna-nsga2": (OptunaConfig(sampler="nsga2", population=4), 1e-12),
    "optuna-nsga3": (OptunaConfig(sampler="nsga3", population=4), 1e-12),
    "optuna-motpe": (OptunaConfig(sampler="motpe", startup=4), 1e-12),
    "natural-niches": (NaturalNichesConfig(mutation=0.3, archive=5), 1e-12),
    "frank-wolfe": (FrankWolfeConfig(scale=2.0), 1e-6),
    "frank-wolfe-hard": (FrankWolfeConfig(variant="hard", scale=2.0), 1e-9),
}


def trajectory(config: Strict) -> dict[str, list[object]]:
    """Objective values, and the first task's examples where they are drawn."""
    examples: list[object] = []

    def evaluate(candidate: Candidate):  # type: ignore[no-untyped-def]
        examples.append(None if candidate.examples is None else list(candidate.examples["first"]))
        return quadratic(candidate)

    def make(variables, *, seed, fit_sizes, budget):  # type: ignore[no-untyped-def]
        return driver_type(config)(config, variables, seed=seed, fit_sizes=fit_sizes, budget=budget)

    vectors = run(begin(make, dimension=5, seed=42), evaluate, evaluations=LENGTH)
    return {"values": [quadratic(Candidate(vector)).value for vector in vectors], "examples": examples}


@pytest.mark.parametrize("name", PINNED)
def test_golden(name: str) -> None:
    config, tolerance = PINNED[name]
    pinned = json.loads((FOLDER / f"{name}.json").read_text())
    found = trajectory(config)
    assert len(pinned["values"]) == LENGTH
    assert found["examples"] == pinned["examples"]
    if tolerance:
        assert found["values"] == pytest.approx(pinned["values"], rel=tolerance, abs=0)
    else:
        assert found["values"] == pinned["values"]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for pinned_name, (pinned_config, _) in PINNED.items():
        (FOLDER / f"{pinned_name}.json").write_text(json.dumps(trajectory(pinned_config), indent=1) + "\n")
