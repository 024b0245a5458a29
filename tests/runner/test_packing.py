"""Packed rows: the same values and gradients as without, and a refusal of models that mix what shares a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from optmerge.calibration import Batch, Calibration, Split
from optmerge.calibration.kinds.packing import PackedCompletions
from optmerge.config.load import build_config
from optmerge.config.objectives import EntropyConfig
from optmerge.errors import ConfigError
from optmerge.objective import Entropy, Outputs
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.packing import check_packing
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.teachers import Teachers
from tests.zoo import make_zoo, zoo_settings

Settings = Callable[..., dict[str, Any]]


def opened(settings: dict[str, Any], root: Path, **task: Any) -> Problem:
    for spec in settings["tasks"].values():
        spec.update(max_tokens=24, **task)
    return open_problem(absolute_references(build_config(settings, root=root), root))


def test_packed_equals_unpacked(language_settings: Settings, tmp_path: Path) -> None:
    found = []
    for pack in (True, False):
        problem = opened(language_settings(), tmp_path, pack=pack)
        check_packing(problem)
        batches = problem.calibration.tasks["a"].splits["fit"].batches(batch_tokens=4096)
        rows = [len(batch.inputs["input_ids"]) for batch in batches]
        evaluator = Evaluator(problem, Teachers.make(problem))
        vector = problem.space.start
        for split in ("fit", "select"):  # what sets the normalisers
            means = evaluator.measure(problem.expand(vector * 0), split).means
            problem.objective.set_normalisers(split, means)
        found.append((sum(rows), evaluator.evaluate(vector, "fit", gradient=True)))
    (few, packed), (many, alone) = found
    assert few < many == 24
    assert packed.value == pytest.approx(alone.value, rel=1e-5)
    assert packed.gradient == pytest.approx(alone.gradient, rel=1e-4, abs=1e-6)
    assert packed.metrics["a"]["expert-kl"] == pytest.approx(alone.metrics["a"]["expert-kl"], rel=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_other_architectures_that_keep_examples_apart(kind: str, tmp_path: Path) -> None:
    settings = zoo_settings(make_zoo(tmp_path, kind))
    for task in settings["tasks"].values():
        del task["label"]
    problem = opened(settings, tmp_path, pack=True)
    batches = problem.calibration.tasks["a"].splits["fit"].batches(batch_tokens=4096)
    assert all(len(batch.inputs["input_ids"]) < batch.size for batch in batches)
    check_packing(problem)


def test_a_model_that_mixes_examples_is_refused(language_settings: Settings, tmp_path: Path) -> None:
    problem = opened(language_settings(), tmp_path, pack=True)

    def mixing(task: str, batch: Batch) -> Outputs:
        """The model without positions: attention reaches from one example into the next."""
        seen = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
        return problem.outputs(task, replace(batch, inputs=seen))

    parts = ("calibration", "config", "device", "dtype", "model")
    fake = SimpleNamespace(outputs=mixing, **{name: getattr(problem, name) for name in parts})
    with pytest.raises(ConfigError, match="judges examples that share a row differently than alone"):
        check_packing(cast(Problem, fake))


def test_a_model_that_mixes_examples_of_another_split_is_refused(language_zoo: Path, tmp_path: Path) -> None:
    """In fit every example fills a row."""
    settings = zoo_settings(language_zoo)
    for task in settings["tasks"].values():
        del task["label"]
    problem = opened(settings, tmp_path, pack=True)
    data = problem.calibration.tasks["a"]
    longest = data.splits["fit"].batches(batch_tokens=1)[0]
    single = Split("fit", ["0"], cast(PackedCompletions, data.splits["fit"].examples))
    single.batches = lambda **_: [longest]  # type: ignore[method-assign]
    calibration = Calibration({"a": replace(data, splits=data.splits | {"fit": single})})

    def mixing(task: str, batch: Batch) -> Outputs:
        seen = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
        return problem.outputs(task, replace(batch, inputs=seen))

    parts = ("config", "device", "dtype", "model")
    fake = SimpleNamespace(outputs=mixing, calibration=calibration, **{name: getattr(problem, name) for name in parts})
    with pytest.raises(ConfigError, match="judges examples that share a row differently than alone"):
        check_packing(cast(Problem, fake))


def test_a_model_without_positions_is_refused(language_settings: Settings, tmp_path: Path) -> None:
    problem = opened(language_settings(), tmp_path, pack=True)

    class Recurrent(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids

    parts = ("calibration", "config", "device", "dtype", "outputs")
    fake = SimpleNamespace(model=lambda task: Recurrent(), **{name: getattr(problem, name) for name in parts})
    with pytest.raises(ConfigError, match="Recurrent takes no positions of tokens"):
        check_packing(cast(Problem, fake))


def test_padding_on_the_left_gives_equal_values(language_settings: Settings, tmp_path: Path) -> None:
    problem = opened(language_settings(), tmp_path)
    (batch,) = problem.calibration.tasks["a"].splits["fit"].batches(batch_tokens=4096)
    assert batch.scored is not None
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    shift = mask.shape[1] - mask.sum(1)

    def moved(values: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.roll(int(places)) for row, places in zip(values, shift, strict=True)])

    at = (moved(mask).cumsum(1) - 1).clamp(min=0)
    left = Batch(
        {"input_ids": moved(ids), "attention_mask": moved(mask), "position_ids": at},
        batch.positions,
        moved(batch.scored),
        batch.targets,
    )
    assert int(shift.max()) > 0
    entropy = Entropy(EntropyConfig())
    right, other = (entropy.per_example(problem.outputs("a", one), one, None) for one in (batch, left))
    torch.testing.assert_close(right, other, rtol=1e-5, atol=1e-5)
