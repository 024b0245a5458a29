"""Running out of memory: a failed evaluation, smaller steps from there on, and the same trajectory after a resume."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from optmerge.config.load import build_config
from optmerge.errors import RunFailed, RunInterrupted
from optmerge.records import Record, Trajectory, Vector
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.journal import batch_tokens_after
from optmerge.runner.problem import open_problem
from optmerge.runner.search import Run, resume, search
from optmerge.runner.teachers import Teachers
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
FORWARD = BertForSequenceClassification.forward
LONGEST = 14  # tokens of the longest example


@contextmanager
def limited(
    tokens: int, *, gradient_only: bool = False, error: Callable[[], Exception] | None = None
) -> Iterator[list[int]]:
    """A machine on which a forward pass of more than so many tokens runs out of memory; yields the passes' sizes."""
    sizes: list[int] = []

    def forward(self: Any, input_ids: torch.Tensor, **inputs: Any) -> Any:
        sizes.append(input_ids.numel())
        if input_ids.numel() > tokens and (torch.is_grad_enabled() or not gradient_only):
            raise error() if error else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return FORWARD(self, input_ids=input_ids, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "forward", forward)
        yield sizes


def ready(settings: dict[str, Any], root: Path) -> Evaluator:
    """An evaluator that can judge fit."""
    problem = open_problem(build_config(settings, root=root))
    evaluator = Evaluator(problem, Teachers.make(problem))
    base = evaluator.measure(np.zeros((len(problem.space.groups), len(problem.directions))), "fit")
    problem.objective.set_normalisers("fit", base.means)
    return evaluator


def a_vector(evaluator: Evaluator) -> Vector:
    return np.random.default_rng(0).uniform(-0.3, 0.9, evaluator.problem.space.dimension)


def test_one_failure_then_smaller_steps_with_the_same_result(settings: Settings, tmp_path: Path) -> None:
    evaluator = ready(settings(), tmp_path)
    vector = a_vector(evaluator)
    whole = evaluator.evaluate(vector, "fit", gradient=True)
    with limited(200) as sizes:
        failed = evaluator.evaluate(vector, "fit", gradient=True)
        assert failed.failed
        assert failed.error == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
        assert failed.batch_tokens == evaluator.batch_tokens < 4096
        assert evaluator.batch_tokens == sizes[0] // 2  # a batch was not full: half of it, not of 4096
        sizes.clear()
        again = evaluator.evaluate(vector, "fit", gradient=True)
    assert again.error is None
    assert again.batch_tokens is None
    assert max(sizes) <= failed.batch_tokens
    assert again.value == pytest.approx(whole.value, rel=1e-5)
    assert whole.gradient is not None
    assert again.gradient is not None
    np.testing.assert_allclose(again.gradient, whole.gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
def test_what_was_gathered_before_the_failure_is_gone(settings: Settings, tmp_path: Path, form: str) -> None:
    """The third of several backward passes fails; the next gradient is, bit for bit, that of a fresh evaluator."""
    fresh, evaluator = (ready(settings(batch_tokens=60), tmp_path) for _ in range(2))
    for each in (fresh, evaluator):
        each.engine.form = form  # type: ignore[assignment]
    vector = a_vector(evaluator)
    calls = iter(range(10**6))

    def forward(self: Any, **inputs: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("made to fail")
        return FORWARD(self, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "forward", forward)
        failed = evaluator.evaluate(vector, "fit", gradient=True)
    assert failed.batch_tokens == evaluator.batch_tokens
    parameters = evaluator.problem.resident.parameters.values()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in parameters)
    fresh.batch_tokens = evaluator.batch_tokens
    for _ in range(2):
        ours, theirs = (each.evaluate(vector, "fit", gradient=True) for each in (evaluator, fresh))
        assert ours.value == theirs.value
        np.testing.assert_array_equal(ours.gradient, theirs.gradient)


def test_the_resident_values_are_written_again_after_a_failure(settings: Settings, tmp_path: Path) -> None:
    evaluator = ready(settings(), tmp_path)
    vector = a_vector(evaluator)
    with limited(20):
        evaluator.evaluate(vector, "fit")
    assert evaluator.engine.apply(evaluator.problem.expand(vector)) == len(evaluator.problem.resident.parameters)


def test_nothing_keeps_the_activations_of_a_failed_evaluation(settings: Settings, tmp_path: Path) -> None:
    evaluator = ready(settings(), tmp_path)
    alive: list[weakref.ref[torch.Tensor]] = []

    def forward(self: Any, **inputs: Any) -> Any:
        output = FORWARD(self, **inputs)
        alive.append(weakref.ref(output.logits))
        held = RuntimeError("inner")
        held.output = output  # type: ignore[attr-defined]  # a cycle: exception, traceback, frame, exception
        try:
            raise held
        except RuntimeError as inner:
            raise torch.OutOfMemoryError("made to fail") from inner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "forward", forward)
        found = evaluator.evaluate(a_vector(evaluator), "fit", gradient=True)
    assert found.failed
    assert len(alive) == 1
    assert alive[0]() is None


def test_where_a_pass_is_one_example_a_failure_is_an_ordinary_one(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = ready(settings(), tmp_path)
    vector = a_vector(evaluator)
    with limited(LONGEST - 1) as sizes, caplog.at_level(logging.WARNING):
        left = []
        while True:
            failed = evaluator.evaluate(vector, "fit")
            assert failed.failed
            if failed.batch_tokens is None:
                break
            left.append(failed.batch_tokens)
        assert left == sorted(left, reverse=True)
        assert len(left) == len(caplog.records) <= 6
        assert "memory ran out" in caplog.text
        assert sizes[-1] == LONGEST
        assert evaluator.batch_tokens < LONGEST
        assert evaluator.evaluate(vector, "fit").batch_tokens is None
        assert evaluator.batch_tokens == left[-1]


def test_the_examples_of_a_candidate_decide_how_small_a_step_must_be(settings: Settings, tmp_path: Path) -> None:
    evaluator = ready(settings(), tmp_path)
    with limited(20):
        found = evaluator.evaluate(a_vector(evaluator), "fit", examples={"a": [0, 1, 2], "b": [4, 5, 6]})
    assert found.batch_tokens is not None
    assert found.batch_tokens <= 3 * LONGEST // 2  # half of three examples, not of the whole split


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (lambda: MemoryError(), True),
        (lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (lambda: RuntimeError("CUDA error: out of memory"), True),
        (lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (lambda: ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(
    settings: Settings, tmp_path: Path, error: Callable[[], Exception], shortage: bool
) -> None:
    evaluator = ready(settings(), tmp_path)
    with limited(60, error=error):
        found = evaluator.evaluate(a_vector(evaluator), "fit")
    assert found.failed
    assert (found.batch_tokens is not None) == shortage
    assert (evaluator.batch_tokens < 4096) == shortage


def test_a_sum_of_zero_is_a_failed_evaluation_with_a_reason(settings: Settings, tmp_path: Path) -> None:
    evaluator = ready(settings(space={"granularity": "task-wise", "normalise": "sum"}), tmp_path)
    found = evaluator.evaluate(np.array([0.4, -0.4]), "fit", gradient=True)
    assert found.error is not None
    assert "group model sum to 0" in found.error
    assert found.batch_tokens is None
    assert evaluator.evaluate(np.array([0.4, 0.5]), "fit", gradient=True).error is None


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def shortages(run: Path) -> list[tuple[int, str, int]]:
    records = Trajectory.read(run).records
    return [(r.id, r.phase, r.batch_tokens) for r in records if r.batch_tokens is not None]


def test_a_search_goes_on_in_smaller_steps_and_a_resumed_one_takes_the_same(settings: Settings, tmp_path: Path) -> None:
    """Gradients need more memory than values, so shortages come in the baselines and in the search."""
    content = settings(budget={"evaluations": 6}, baselines={"grid": [0.3]})

    @contextmanager
    def machine() -> Iterator[None]:
        with limited(160), limited_gradient(40):
            yield

    with machine():
        whole = run(content, tmp_path / "whole")
    assert whole.result["status"] == "finished"
    found = shortages(whole.folder)
    assert found[0][:2] == (0, "baseline")
    assert sum(phase == "search" for _, phase, _ in found) >= 2
    names = {row["name"] for row in whole.result["rows"]}
    assert {"base", "expert:a", "average", "uniform:0.3", "adam"} <= names
    for stop_at in (3, 7):
        asked = iter(range(10**6))
        cut = tmp_path / f"cut{stop_at}"
        with machine():
            with pytest.raises(RunInterrupted):
                run(content, cut, stop=lambda n=stop_at, a=asked: "asked to" if next(a) >= n else None)
            resume(cut / "run")
        assert facts(cut / "run") == facts(whole.folder)
        assert shortages(cut / "run") == found


@contextmanager
def limited_gradient(tokens: int) -> Iterator[None]:
    """As `limited`, for gradients, on top of what else is limited."""
    forward = BertForSequenceClassification.forward

    def smaller(self: Any, input_ids: torch.Tensor, **inputs: Any) -> Any:
        if torch.is_grad_enabled() and input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("no memory for a gradient")
        return forward(self, input_ids=input_ids, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "forward", smaller)
        yield


def test_shortages_that_end_in_smaller_steps_do_not_end_a_run_but_others_do(settings: Settings, tmp_path: Path) -> None:
    with limited_gradient(30):  # four halvings of the fit split's passes
        made = run(settings(), tmp_path / "a")
    assert made.result["status"] == "finished"
    assert sum(phase == "search" for _, phase, _ in shortages(made.folder)) > 3
    with limited_gradient(5), pytest.raises(RunFailed, match=r"3 generations in a row.*no memory for a gradient"):
        run(settings(), tmp_path / "b")


def test_the_base_that_finds_no_memory_at_all_ends_the_run(settings: Settings, tmp_path: Path) -> None:
    open_problem(build_config(settings(), root=tmp_path))
    ready(settings(), tmp_path)  # the experts' outputs are cached, so that the first pass is the base's
    with limited(5), pytest.raises(RunFailed, match=r"base model itself cannot be judged on fit: OutOfMemoryError"):
        run(settings(), tmp_path)


def test_records_of_before_and_after_can_be_read(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(budget={"evaluations": 1}), tmp_path)
    lines = (made.folder / "trajectory.jsonl").read_text().splitlines()
    assert not any("batch_tokens" in line for line in lines)  # without a shortage, the file is what it always was
    trajectory = Trajectory.open(tmp_path / "other")
    trajectory.append(Record(0, "search", "adam", "fit", None, error="OutOfMemoryError: x", batch_tokens=64))
    trajectory.append(Record(1, "search", "adam", "fit", 0.5))
    trajectory.close()
    assert json.loads((tmp_path / "other" / "trajectory.jsonl").read_text().splitlines()[0])["batch_tokens"] == 64
    read = Trajectory.read(tmp_path / "other").records
    assert [record.batch_tokens for record in read] == [64, None]
    assert [batch_tokens_after(read[:n], 4096) for n in range(3)] == [4096, 64, 64]
    late = Record(2, "search", "adam", "fit", None, error="OutOfMemoryError: x", batch_tokens=128)
    assert batch_tokens_after([*read, late], 4096) == 64, "of a worker that was at it when another needed less"
