"""The three suites of `time_to_quality`: models, data, and how much of everything.

suite = SUITES["digits"](small=False)
suite.search(folder / "adam", objective="entropy", driver={"name": "adam"})      # a search file's content
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.byte_llamas import TOKENS, LlamaRecipe, make_byte_llamas
from benchmarks.demo_searches import demo_zoo
from benchmarks.digit_vits import ViTRecipe, make_digit_vits
from benchmarks.trained_zoo import TrainedZoo

METRIC = "accuracy"
GRID = [0.2, 0.3, 0.4]  # uniform coefficients that are tried for a start, beside the average


@dataclass(frozen=True, slots=True)
class Suite:
    """Models and data.

    Attributes:
        name: In file names and on the command line.
        title: For people.
        base: The base model.
        experts: Task -> its expert.
        data: Task -> its file.
        task: Settings that all tasks share.
        fit: Examples a task; likewise ``select`` and ``report``.
        heads: As in a search file.
        lead: The term that AdaMerging makes small, as in a search file's objective.
    """

    name: str
    title: str
    base: Path
    experts: Mapping[str, Path]
    data: Mapping[str, Path]
    task: Mapping[str, Any]
    fit: int
    select: int
    report: int
    heads: str = "auto"
    lead: Mapping[str, Any] = field(default_factory=lambda: {"name": "entropy", "normalise": "log-classes"})

    def search(self, output: Path, **changes: Any) -> dict[str, Any]:
        """The content of a search file; keyword arguments are added, or replace what is there."""
        return {
            "base": str(self.base),
            "experts": {name: str(folder) for name, folder in self.experts.items()},
            "tasks": {name: {"expert": name, "data": str(file)} | dict(self.task) for name, file in self.data.items()},
            "heads": self.heads,
            "splits": {"fit": self.fit, "select": self.select, "report": self.report},
            "baselines": {"grid": GRID},
            "device": "cpu",
            "output": str(output),
        } | changes


def _trained(zoo: TrainedZoo, **settings: Any) -> Suite:
    return Suite(base=zoo.base, experts=zoo.experts, data=zoo.data, **settings)


def _demo(small: bool) -> Suite:
    zoo, plan = demo_zoo(small=small)
    return Suite(
        name="demo",
        title="MiniLM, four text classifiers" if not small else "MiniLM, two text classifiers",
        base=zoo.base,
        experts={task: zoo.expert(task) for task in plan.tasks},
        data={task: zoo.data(task) for task in plan.tasks},
        task={"label": "label", "max_tokens": plan.recipe.max_tokens},
        fit=16 if small else 96,
        select=8 if small else 32,
        report=16 if small else 500,
    )


def _digits(small: bool) -> Suite:
    recipe = ViTRecipe(base_steps=10, steps=10, hidden=16, layers=1) if small else ViTRecipe()
    return _trained(
        make_digit_vits(recipe),
        name="digits",
        title="small ViTs, four ways of showing digits",
        task={"label": "label"},
        heads="own",
        fit=32 if small else 240,
        select=16 if small else 80,
        report=32 if small else 500,
    )


def _language(small: bool) -> Suite:
    recipe = LlamaRecipe(base_steps=4, steps=4, batch=6, hidden=16, layers=1) if small else LlamaRecipe()
    return _trained(
        make_byte_llamas(recipe),
        name="language",
        title="byte-level Llamas, three kinds of text",
        task={"max_tokens": TOKENS},
        lead={"name": "cross-entropy", "normalise": "none"},
        fit=32 if small else 90,
        select=16 if small else 30,
        report=32 if small else 300,
    )


SUITES: dict[str, Callable[[bool], Suite]] = {"digits": _digits, "language": _language, "demo": _demo}
