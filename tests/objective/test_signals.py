"""Signals against plain formulas, and that neither batches, nor precision, nor what a teacher keeps can change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optmerge.objective import signals
from optmerge.objective.kept import coarse_log_probs
from optmerge.objective.signals import Signals, row_sums, share_at_bound
from optmerge.objective.teacher import TeacherBatch

CPU = torch.device("cpu")


def logits(rows: int, classes: int, seed: int, *, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def teacher(outputs: torch.Tensor, k: int | None = None) -> TeacherBatch:
    kept = None if k is None else outputs.topk(k, -1).indices
    return TeacherBatch(coarse_log_probs(outputs, kept), kept, outputs.argmax(-1))


def watched(
    model: torch.Tensor, expert: torch.Tensor | None, *, step: int = 1000, k: int | None = None
) -> dict[str, float]:
    watch = Signals(CPU)
    for begin in range(0, len(model), step):
        rows = slice(begin, begin + step)
        watch.add("a/b", model[rows], None if expert is None else teacher(expert[rows], k))
    return watch.read()


def test_values_are_those_of_the_formulas() -> None:
    model, expert = logits(300, 7, 0), logits(300, 7, 1)
    found = watched(model, expert)
    for prefix, outputs in (("", model), ("expert-", expert)):
        mean = outputs.double().softmax(-1).mean(0)
        entropy = float(-(mean * mean.log()).sum()) / math.log(7)
        share = int(outputs.argmax(-1).bincount().max()) / 300
        assert found[f"{prefix}marginal-entropy/a/b"] == pytest.approx(entropy, rel=1e-5)
        assert found[f"{prefix}top-share/a/b"] == pytest.approx(share)
    assert found["agreement/a/b"] == pytest.approx(float((model.argmax(-1) == expert.argmax(-1)).float().mean()))


def test_a_collapse_has_no_entropy_and_an_even_model_all_of_it() -> None:
    one = torch.zeros(50, 5)
    one[:, 3] = 100.0
    even = 100.0 * torch.eye(5).repeat(10, 1)
    found = watched(one, even)
    assert found["marginal-entropy/a/b"] == pytest.approx(0.0, abs=1e-6)
    assert found["top-share/a/b"] == 1.0
    assert found["agreement/a/b"] == pytest.approx(0.2)
    assert found["expert-marginal-entropy/a/b"] == pytest.approx(1.0, rel=1e-6)
    assert found["expert-top-share/a/b"] == pytest.approx(0.2)


def test_batches_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, expert = logits(120, 11, 2), logits(120, 11, 3)
    whole = watched(model, expert)
    assert watched(model, expert, step=7) == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(signals, "_ROWS", 25)  # two rows at a time
    assert watched(model, expert) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_precision_is_summed_in_fp32(dtype: torch.dtype) -> None:
    model = logits(2000, 5, 4).to(dtype)
    assert watched(model, None) == pytest.approx(watched(model.float(), None), rel=1e-6)


def test_classes_that_a_teacher_does_not_keep_only_lower_its_entropy() -> None:
    model, expert = logits(200, 40, 5), logits(200, 40, 6)
    whole, some = watched(model, expert), watched(model, expert, k=8)
    name = "expert-marginal-entropy/a/b"
    assert 0.5 * whole[name] < some[name] < whole[name]
    assert {key: value for key, value in some.items() if key != name} == {
        key: value for key, value in whole.items() if key != name
    }


def test_kept_classes_are_added_where_they_belong() -> None:
    """What is kept of nearly certain predictions is nearly all of them."""
    expert = logits(200, 40, 7, scale=60.0)
    name = "expert-marginal-entropy/a/b"
    assert watched(expert, expert, k=8)[name] == pytest.approx(watched(expert, expert)[name], rel=1e-4)


def test_without_a_teacher_only_the_models_own_signals_are_there() -> None:
    assert set(watched(logits(5, 3, 0), None)) == {"marginal-entropy/a/b", "top-share/a/b"}
    assert Signals(CPU).read() == {}


def test_impossible_classes_count_as_zero_and_nothing_is_differentiated() -> None:
    model = logits(10, 4, 8).requires_grad_()
    masked = model.masked_fill(torch.tensor([False, False, False, True]), -math.inf)
    watch = Signals(CPU)
    watch.add("a", masked, None)
    assert not any(value.requires_grad for value in watch.pending().values())
    assert 0.0 < watch.read()["marginal-entropy/a"] < 1.0


def test_signals_of_coefficients() -> None:
    table = np.array([[0.5, 0.5], [1.0, 2.0], [0.0, -1.0]])
    assert row_sums(table) == {"row-sum/mean": pytest.approx(1.0), "row-sum/max": 3.0}
    vector, upper = np.array([0.0, 0.5, 1.0, 2.0]), np.array([1.0, 1.0, 1.0, 9.0])
    assert share_at_bound(vector, np.zeros(4), upper) == 0.5


def test_choices_at_an_end_of_their_list_are_not_at_a_bound() -> None:
    vector, lower, upper = np.array([0.5, 1.0, 0.0]), np.zeros(3), np.ones(3)
    assert share_at_bound(vector, lower, upper) == pytest.approx(2 / 3)
    assert share_at_bound(vector, lower, upper, choices=np.array([False, False, True])) == 0.5
    assert share_at_bound(vector, lower, upper, choices=np.array([True, True, True])) == 0
