"""What experts cost a search in memory: the outputs that are kept of them, as the plan prints it, and nothing else.

Every storage that an operation makes is counted (`LiveBytes`), so the numbers do not depend on the allocator.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import open_problem
from optmerge.runner.simulation import LiveBytes
from optmerge.runner.teachers import Teachers
from tests.tiny import save_family, sentences
from tests.zoo import zoo_settings

NAMES = tuple(f"e{number}" for number in range(8))
Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A search over eight experts of a wide-headed language model."""
    zoo = tmp_path_factory.mktemp("eight")
    save_family("llama-tied", zoo, experts=NAMES, scale=0.3, vocab_size=400)
    for number, name in enumerate(NAMES):
        with open(zoo / f"{name}.jsonl", "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps({"text": text}) + "\n" for text in sentences(60, seed=number))

    def make(count: int, **changes: Any) -> dict[str, Any]:
        names = NAMES[:count]
        return zoo_settings(
            zoo,
            experts={name: str(zoo / name) for name in names},
            tasks={name: {"expert": name, "data": str(zoo / f"{name}.jsonl")} for name in names},
            splits={"fit": 24, "select": 12, "report": 12},
            batch_tokens=64,
            **changes,
        )

    return make


def peaks(settings: dict[str, Any], root: Path) -> tuple[int, int, int]:
    """Bytes of a gradient evaluation; of the same with the reading of teachers before it; and what the plan prints."""
    config = build_config(settings, root=root)
    problem = open_problem(config)
    evaluator = Evaluator(problem, Teachers.make(problem))
    shape = (len(problem.space.groups), len(problem.directions))
    problem.objective.set_normalisers("fit", evaluator.measure(np.zeros(shape), "fit").means)
    for step in (0.01, 0.02):  # the second one finds gradients and buffers in place
        with LiveBytes(device="cpu") as alone:
            assert evaluator.evaluate(problem.space.start + step, "fit", gradient=True).error is None
    with LiveBytes(device="cpu") as both:
        evaluator = Evaluator(problem, Teachers.make(problem))
        assert evaluator.evaluate(problem.space.start + 0.03, "fit", gradient=True).error is None
    return alone.peak, both.peak, make_plan(config, root=root).memory["teacher outputs"]


def test_with_eight_experts_the_cache_is_all_that_expert_kl_adds_to_entropy(eight: Settings, tmp_path: Path) -> None:
    entropy, _, _ = peaks(eight(8, objective={"terms": [{"name": "entropy"}]}), tmp_path)
    _, with_cache, printed = peaks(
        eight(8, objective={"terms": [{"name": "expert-kl", "top_k": 128, "tail_samples": 0}]}), tmp_path
    )
    assert printed > 2 * entropy, "the cache is what counts here"
    assert with_cache == pytest.approx(entropy + printed, rel=0.05)


def test_an_evaluation_does_not_grow_with_the_experts(eight: Settings, tmp_path: Path) -> None:
    objective = {"terms": [{"name": "expert-kl"}]}
    few, _, small = peaks(eight(2, objective=objective), tmp_path)
    many, _, large = peaks(eight(8, objective=objective), tmp_path)
    assert large > 3.5 * small
    assert many <= 1.1 * few
