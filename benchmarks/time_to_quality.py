"""Time to quality: what it takes to reach what the reference methods reach at their published budgets.

    make bench-time-to-quality

On three suites, with the same models, data and evaluator:

- FusionBench's layer-wise AdaMerging at its published settings, run from its package, against our Adam from the same
  start on the same objective, inputs, encoder and heads: seconds until ours reaches the select value that it ends with.
  The objective is entropy; for language models cross-entropy, as in its AdaMerging for Llamas. Beside it ours with
  expert-kl as a second term, judged by the same value on select.
- mergekit-evolve's search (`mergekit_replay`) against our schedules on the same objective (expert-kl), layer by layer:
  the value at equal forward passes, and the passes until its final value.

What our start needs (baselines on select; teachers where the objective looks at them) is counted. Everything is kept in
--work, so that an interrupted measurement goes on, and a second start only writes table and plot again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import mergekit_replay
from benchmarks.adamerging import AdaMerging
from benchmarks.demo_searches import run
from benchmarks.harness import ROOT, machine, parser
from benchmarks.mergekit_replay import MergekitEvolve
from benchmarks.quality_curves import NOTHING, Cost, Curve, Point, Sizes, search_curve
from benchmarks.quality_judge import Judge
from benchmarks.quality_report import (
    ADAM,
    BOTH,
    CMA,
    COLD,
    GUIDED,
    OTHER,
    PLAIN,
    AdaMergingSide,
    SuiteResult,
    markdown,
    plot,
)
from benchmarks.quality_suites import METRIC, SUITES, Suite
from optmerge.atomic import atomic_write
from optmerge.config.drivers import CmaConfig
from optmerge.config.schema import BudgetConfig
from optmerge.drivers.variables import Variables
from optmerge.records import Trajectory
from optmerge.runner.executor import InProcess
from optmerge.runner.journal import Journal
from optmerge.runner.loop import run_loop
from optmerge.runner.state import StateStore
from optmerge.tracking.view import RunView


@dataclass(frozen=True, slots=True)
class Budget:
    """How long everything runs.

    Attributes:
        reference: Steps of AdaMerging.
        every: Of these, between two looks at it.
        limit: Seconds of its stepping after which it stops, at 300 steps at the earliest.
        steps: Of our Adam against it.
        batch: Examples a task and step of our Adam against it.
        lr: Of our Adam.
        select_every: Of our Adam's steps, between two looks at select.
        evaluations: Of mergekit-evolve, to the end of a generation.
        seeds: Of the comparison with it.
    """

    reference: int = 1000
    every: int = 25
    limit: float = 3600.0
    steps: int = 60
    batch: int = 16
    lr: float = 0.1
    select_every: int = 4
    evaluations: int = mergekit_replay.EVALUATIONS
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


SMALL = Budget(reference=4, every=2, steps=4, batch=8, select_every=2, evaluations=10, seeds=(0, 1))
START = 0.3  # of every coefficient, as AdaMerging's
SMALL_SIGMA = 0.02  # of CMA-ES after Adam, as in schedules/gradient-then-cma.yaml
GUIDANCE = 0.1  # weight of expert-kl (1 at the base) beside AdaMerging's objective
TURNS = (0, 1, 2)  # seeds of our side: before, half way through and after the reference, so that all see the machine


def adam(budget: Budget, batch: int) -> dict[str, Any]:
    """Our Adam."""
    return {"name": "adam", "lr": budget.lr, "batch": batch, "schedule": "cosine"}


def run_name(side: str, budget: Budget, seed: int) -> str:
    """The folder of one of our runs against AdaMerging; other settings have another."""
    return f"{side.lower().replace(', ', '-').replace(' ', '-')}-lr-{budget.lr:g}-steps-{budget.steps}-{seed}"


def against_adamerging(suite: Suite, folder: Path, budget: Budget, threads: int) -> AdaMergingSide:
    """Run both sides in turns, and judge both by our evaluator."""
    settings = suite.search(folder / "unused", objective=objective_of(suite, PLAIN), space="tensor-wise")
    judge = Judge(settings)
    reference = AdaMerging(folder / "adamerging", judge, settings, every=budget.every, threads=threads)
    ours: list[Curve] = []
    for turn, seed in enumerate(TURNS):
        reference.advance(budget.reference * turn // (len(TURNS) - 1), limit=budget.limit)
        ours += [_ours(suite, folder, budget, side, seed) for side in (PLAIN, GUIDED)]
    other = _ours(suite, folder, budget, OTHER, 0)
    first, last = reference.points[0], reference.points[-1]
    before, after = (judge.report(judge.table_of(point.coefficients), METRIC) for point in (first, last))
    reached = tuple(Point(Cost(p.seconds, p.fit_passes), p.select) for p in reference.points)
    theirs = Curve("AdaMerging", 0, NOTHING, reached, after)
    ours = [_crossing(judge, curve, folder / run_name(curve.side, budget, curve.seed), last.select) for curve in ours]
    return AdaMergingSide(theirs, last.step, before, sorted(ours, key=lambda curve: curve.side), other)


def objective_of(suite: Suite, side: str) -> Any:
    """What one of our sides makes small, as in a search file."""
    terms = [suite.lead] if side == PLAIN else [suite.lead, {"name": "expert-kl", "weight": GUIDANCE}]
    return "expert-kl" if side == OTHER else {"terms": terms, "select": [suite.lead]}


def _ours(suite: Suite, folder: Path, budget: Budget, side: str, seed: int) -> Curve:
    """One of our searches; but for `OTHER` it has the reference's start, so that baselines are no part of it."""
    from_baseline = side == OTHER
    view = run(
        suite.search(
            folder / run_name(side, budget, seed),
            objective=objective_of(suite, side),
            space="tensor-wise" if from_baseline else {"preset": "tensor-wise", "start": START},
            driver=adam(budget, budget.batch),
            budget={"evaluations": budget.steps, "select_every": budget.select_every, "finalists": 1, "front": 0},
            alarms={"collapse": "warn"},  # the reference has no guard either
            seed=seed,
        ),
        terminal=False,
    )
    sizes = Sizes(suite.fit, suite.select, budget.batch)
    return _curve(view, side, seed, sizes, teachers=side != PLAIN, baselines=from_baseline)


def _curve(view: RunView, side: str, seed: int, sizes: Sizes, *, teachers: bool, baselines: bool) -> Curve:
    assert view.search_row is not None, f"{view.folder} has no result"
    curve = search_curve(view.folder, side, seed, sizes, teachers=teachers, baselines=baselines)
    return replace(curve, report=view.search_row.mean)


def _crossing(judge: Judge, curve: Curve, folder: Path, value: float) -> Curve:
    """The curve with its report accuracy where it first reaches a value."""
    point = curve.reached(value)
    if point is None or point.record is None:
        return curve
    vector = Trajectory.read(folder).records[point.record].vector
    assert vector is not None, f"record {point.record} of {folder} has no vector"
    return replace(curve, crossing=judge.report(judge.problem.expand(vector), METRIC))


def against_mergekit(suite: Suite, folder: Path, budget: Budget) -> list[Curve]:
    """Every side and seed; all with about as many forward passes as mergekit-evolve takes."""
    judge = Judge(suite.search(folder / "unused", objective="expert-kl", space="layer-wise"))
    dimension = judge.problem.space.dimension
    evaluations = mergekit_replay.whole_generations(budget.evaluations, dimension)
    curves = [_replay(judge, folder / f"mergekit-evolve-{seed}", seed, evaluations) for seed in budget.seeds]
    passes = curves[0].total.passes
    baselines = 1 + len(suite.experts) + 1 + len(suite.search(folder)["baselines"]["grid"])
    share = suite.select / suite.fit
    start = 2 + share + baselines * share  # teachers on fit and select, the base on fit, baselines on select
    batch = max(1, suite.fit // 4)
    step = 3 * batch / suite.fit + share / budget.select_every
    left = passes - start
    tail = {"select_every": 1, "finalists": 1, "front": 0}
    cma_budget = {"evaluations": max(2, int(left))} | tail
    tag = f"-lr-{budget.lr:g}"
    cold = {"driver": {"name": "cma", "known": 0}, "space": {"preset": "layer-wise", "start": 1 / len(suite.experts)}}
    plain, batched = Sizes(suite.fit, suite.select), Sizes(suite.fit, suite.select, batch)
    # Half of the passes for each: the second stage looks at all of fit and at select after every evaluation.
    steps, rest = max(1, int(left / 2 / step)), max(1, int(left / 2 / (1 + share)))
    both = [
        {"driver": adam(budget, batch), "evaluations": steps},
        {"driver": {"name": "cma", "sigma": SMALL_SIGMA, "known": 0}, "evaluations": rest},
    ]
    sides: dict[str, tuple[dict[str, Any], Sizes]] = {
        COLD: (cold | {"budget": cma_budget}, plain),
        CMA: ({"driver": "cma", "budget": cma_budget}, plain),
        ADAM: (
            {
                "driver": adam(budget, batch),
                "budget": {"evaluations": max(2, int(left / step))} | tail | {"select_every": budget.select_every},
            },
            batched,
        ),
        BOTH: (
            {"schedule": both, "budget": {"evaluations": steps + rest} | tail | {"select_every": budget.select_every}},
            batched,
        ),
    }
    for name, (changes, sizes) in sides.items():
        for seed in budget.seeds:
            output = folder / f"{name.replace(', ', '-').replace(' ', '-')}{tag if name in (ADAM, BOTH) else ''}-{seed}"
            wanted = suite.search(output, objective="expert-kl", seed=seed) | {"space": "layer-wise"} | changes
            view = run(wanted, terminal=False)
            curves.append(_curve(view, name, seed, sizes, teachers=True, baselines=name != COLD))
    return curves


def _replay(judge: Judge, folder: Path, seed: int, evaluations: int) -> Curve:
    """Select is looked at once a generation for the curve, and counts for nothing, as mergekit-evolve has none."""
    space = judge.problem.space
    start = np.full(space.dimension, 1 / len(judge.problem.family.experts))
    driver = MergekitEvolve(
        CmaConfig(),
        Variables(tuple(space.names), space.lower, space.upper, start),
        seed=np.random.SeedSequence(seed),
        fit_sizes={},
        budget=evaluations,
    )
    trajectory = Trajectory.open(folder)
    try:
        journal = Journal(trajectory)
        outcome = run_loop(
            driver,
            InProcess(judge),
            journal,
            BudgetConfig(evaluations=evaluations),
            StateStore(folder / "state"),
            collapse="warn",
        )
    finally:
        trajectory.close()
    curve = search_curve(folder, driver.name, seed, Sizes(judge.size("fit"), 0), teachers=False)
    assert outcome.best is not None, f"{folder}: {outcome.reason}"
    report = judge.report(judge.problem.expand(outcome.best), METRIC)
    return Curve(driver.name, seed, Cost(0.0, 1.0), curve.points, report)  # the teachers' pass over fit


def measure(suite: Suite, folder: Path, budget: Budget, threads: int) -> None:
    """Both comparisons of one suite; curves.json has the first as soon as it is known."""
    file = folder / "curves.json"
    result = SuiteResult(suite.name, suite.title, against_adamerging(suite, folder, budget, threads), [])
    if not file.exists():
        atomic_write(file, json.dumps(result.to_json()))
    result = replace(result, mergekit=against_mergekit(suite, folder, budget))
    atomic_write(file, json.dumps(result.to_json()))


def known_results(folder: Path) -> Mapping[str, SuiteResult]:
    """Suite -> what is in the folder, in the order of `SUITES`."""
    files = {name: folder / name / "curves.json" for name in SUITES}
    return {
        name: SuiteResult.from_json(json.loads(file.read_text(encoding="utf-8")))
        for name, file in files.items()
        if file.exists()
    }


def options_of() -> argparse.ArgumentParser:
    """The options."""
    usual = Budget()
    made = parser(__doc__, default="runs/time-to-quality")
    made.add_argument("--only", nargs="+", choices=list(SUITES), default=list(SUITES), help="which suites")
    made.add_argument("--threads", type=int, default=1, help="threads of each side; small models gain nothing by more")
    made.add_argument("--reference-steps", type=int, default=usual.reference, help="steps of AdaMerging")
    made.add_argument("--lr", type=float, default=usual.lr, help="step size of our Adam")
    made.add_argument("--steps", type=int, default=usual.steps, help="steps of our Adam against AdaMerging")
    return made


def main() -> None:
    """Measure what is missing, and write table and plot about all that is there."""
    options = options_of().parse_args()
    torch.set_num_threads(options.threads)
    budget = SMALL if options.small else Budget(reference=options.reference_steps, lr=options.lr, steps=options.steps)
    folder: Path = (options.work or ROOT / "runs" / "time-to-quality").resolve()
    folder = folder / "small" if options.small else folder
    for name in options.only:
        measure(SUITES[name](options.small), folder / name, budget, options.threads)
    results = list(known_results(folder).values())
    command = "python -m benchmarks.time_to_quality" + (" --small" if options.small else "")
    told = f"{markdown(results)}\n- Command: `{command}`\n- {machine(options.threads)}\n"
    atomic_write(folder / "RESULT.md", told)
    plot(results, folder / "time-to-quality.png")
    print(told)


if __name__ == "__main__":
    main()
