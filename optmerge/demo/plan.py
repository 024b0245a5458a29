"""What the demo does and how long that takes, as data: the tasks, how experts are trained, and every search.

plan = demo_plan(quick=False)
settings = search_settings(plan, plan.searches[0], zoo, output)     # the content of a search file
for part, seconds in time_plan(plan, zoo): ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optmerge.demo.recipe import TrainingRecipe
from optmerge.demo.zoo import Zoo

METHOD = "iso-c"
"""The data-free method that is scored beside the searches, and that one of them searches around."""

ADAMERGING_START = 0.3
"""The uniform coefficient that AdaMerging starts from (Yang et al. 2024, section 4.1)."""

# Core-seconds for one text of about 28 tokens through a 6-layer, 384-wide encoder in fp32, measured on a 2.8 GHz Xeon.
_FORWARD = 0.0085
_TRAIN = 0.025
_START = 6.0  # seconds of imports, of opening models and of making Iso-C's delta, for each search
_CORES = 2  # more than two bring little on batches of this size


@dataclass(frozen=True, slots=True)
class DemoSearch:
    """One search of the demo.

    Attributes:
        name: Folder of its run.
        title: What the table calls it.
        evaluations: Budget on the fit split.
        fit: Unlabelled fit examples a task.
        batch: Fit examples a task that one evaluation looks at.
        settings: What differs from the shared part of the search file.
    """

    name: str
    title: str
    evaluations: int
    fit: int
    batch: int
    settings: Mapping[str, Any]

    @property
    def gradient(self) -> bool:
        """Whether an evaluation also costs a backward pass."""
        return bool(self.settings["driver"]["name"] == "adam")

    @property
    def objective(self) -> str:
        """The objective's preset."""
        return str(self.settings["objective"])


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """The whole demo.

    Attributes:
        tasks: Which tasks and experts.
        recipe: How the experts are trained.
        select: Unlabelled examples a task that choose between iterates and baselines.
        report: Labelled examples a task that the table shows.
        grid: Uniform coefficients that are scored.
        method_grid: Scales of Iso-C that are scored.
        searches: In the order in which they run.
        conclusive: Whether experts and report are large enough to tell the searches apart.
    """

    tasks: tuple[str, ...]
    recipe: TrainingRecipe
    select: int
    report: int
    grid: tuple[float, ...]
    method_grid: tuple[float, ...]
    searches: tuple[DemoSearch, ...]
    conclusive: bool = True

    @property
    def baselines(self) -> int:
        """How many recipes are scored without a search: base, experts, average, and both grids."""
        return 2 + len(self.tasks) + len(self.grid) + len(self.method_grid)


def demo_plan(*, quick: bool) -> DemoPlan:
    """The demo, or a small one that shows every part of it in under two minutes."""
    if quick:
        return DemoPlan(
            tasks=("sentiment", "tweets"),
            recipe=TrainingRecipe(steps=24, warm_up=5, probe_examples=400),
            select=24,
            report=80,
            grid=(0.3, 0.6),
            method_grid=(1.4,),
            searches=_searches(steps=8, batch=16, fit=32, entropy_steps=4, evaluations=8),
            conclusive=False,
        )
    return DemoPlan(
        tasks=("sentiment", "author", "tweets", "topics"),
        recipe=TrainingRecipe(),
        select=60,
        report=500,
        grid=(0.2, 0.3, 0.4, 1.0),
        method_grid=(1.4, 1.8, 2.2),
        searches=_searches(steps=32, batch=32, fit=180, entropy_steps=10, evaluations=36),
    )


def _searches(*, steps: int, batch: int, fit: int, entropy_steps: int, evaluations: int) -> tuple[DemoSearch, ...]:
    def adam(name: str, title: str, budget: int, directions: list[str], objective: str) -> DemoSearch:
        driver = {"name": "adam", "lr": 0.05, "batch": batch, "schedule": "cosine"}
        settings = {"driver": driver, "space": "tensor-wise", "directions": directions, "objective": objective}
        return DemoSearch(name, title, budget, fit, batch, settings)

    def sampled(name: str, title: str, driver: dict[str, Any]) -> DemoSearch:
        settings = {"driver": driver, "space": "layer-wise", "directions": ["experts"], "objective": "expert-kl"}
        few = min(64, fit)
        return DemoSearch(name, title, evaluations, few, few, settings)

    return (
        adam("adam", "Adam, tensor-wise", steps, ["experts"], "expert-kl"),
        adam("adam-iso-c", "Adam, tensor-wise, with Iso-C", steps, ["experts", METHOD], "expert-kl"),
        sampled("cma", "CMA-ES, layer-wise", {"name": "cma", "sigma": 0.1}),
        sampled("optuna", "Optuna TPE, layer-wise", {"name": "optuna", "sampler": "tpe"}),
        adam("entropy", "Adam, tensor-wise, entropy", entropy_steps, ["experts"], "entropy"),
    )


def search_settings(plan: DemoPlan, search: DemoSearch, zoo: Zoo, output: Path) -> dict[str, Any]:
    """The content of a search's file.

    Args:
        plan: The demo.
        search: One of its searches.
        zoo: Where models and data are.
        output: The demo's folder; the run gets a folder of its own below it.
    """
    baselines: dict[str, Any] = {"grid": list(plan.grid), "methods": [METHOD], "method_grid": list(plan.method_grid)}
    if search.objective != plan.searches[0].objective:
        # Another objective judges every baseline anew; AdaMerging's own start is all that it needs.
        baselines = {"grid": [ADAMERGING_START], "methods": []}
    settings: dict[str, Any] = {
        "version": 1,
        "base": str(zoo.base),
        "experts": {task: str(zoo.expert(task)) for task in plan.tasks},
        "tasks": {
            task: {
                "expert": task,
                "data": str(zoo.data(task)),
                "text": "text",
                "label": "label",
                "max_tokens": plan.recipe.max_tokens,
            }
            for task in plan.tasks
        },
        "splits": {"fit": search.fit, "select": plan.select, "report": plan.report},
        "baselines": baselines,
        # No front: scoring its merges on report would take as long as the search.
        "budget": {"evaluations": search.evaluations, "select_every": select_every(search), "front": 0},
        "output": str(output / search.name),
    }
    return settings | dict(search.settings)


def select_every(search: DemoSearch) -> int:
    """How many generations pass between two looks at select: a generation of CMA-ES is many evaluations."""
    return 1 if search.settings["driver"]["name"] == "cma" else 4


def time_plan(plan: DemoPlan, zoo: Zoo, finished: frozenset[str] = frozenset()) -> list[tuple[str, float]]:
    """What will be done and about how many seconds it takes on this machine's cores.

    Args:
        plan: The demo.
        zoo: Experts that are there are not counted.
        finished: Names of searches that are done.
    """
    speed = 1 / min(_CORES, os.cpu_count() or 1)
    forward, train = _FORWARD * speed, _TRAIN * speed
    tasks, recipe = len(plan.tasks), plan.recipe
    parts: list[tuple[str, float]] = []
    if zoo.missing():
        each = recipe.steps * recipe.batch * train + recipe.probe_examples * forward
        parts.append((f"train {len(zoo.missing())} experts", len(zoo.missing()) * (each + 2.0)))
    for search in plan.searches:
        if search.name in finished:
            continue
        if not parts or parts[-1][0].startswith("train"):
            parts.append(("score baselines", (plan.baselines + 1) * tasks * (plan.select + plan.report) * forward))
        each = search.batch * (train if search.gradient else forward)
        generations = search.evaluations / select_every(search) / (12 if search.name == "cma" else 1)
        judged = tasks * (search.evaluations * each + (generations + 1) * plan.select * forward)
        teach = tasks * (search.fit + plan.report) * forward
        parts.append((search.title, _START + judged + teach))
    parts.append(("export, reload, compare", 8.0 + tasks * plan.report * forward))
    return parts
