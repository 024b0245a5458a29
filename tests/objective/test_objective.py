from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from optmerge.config.objectives import ObjectiveConfig
from optmerge.errors import ConfigError, RunFailed
from optmerge.objective import Objective, report_metrics
from optmerge.objective.teacher import Keep

from .cases import make_geometry

MEANS = {
    "a": {"entropy": 0.3, "expert-kl": 0.2, "accuracy": 0.75},
    "b": {"entropy": 1.5, "expert-kl": 0.8, "accuracy": 0.5},
}
BASE = {
    "a": {"entropy": 0.6, "expert-kl": 0.4, "accuracy": 0.5},
    "b": {"entropy": 2.0, "expert-kl": 1.6, "accuracy": 0.2},
}


def make(*terms: dict[str, object], **settings: object) -> Objective:
    config = ObjectiveConfig.model_validate({"terms": list(terms), **settings})
    return Objective(config, ["a", "b"], {"a": 2, "b": 20})


def test_normalised_by_the_base() -> None:
    objective = make({"name": "expert-kl"})
    assert objective.needs_base
    objective.set_normalisers("fit", BASE)
    assert objective.combine("fit", MEANS) == (pytest.approx(0.5), {"a": 0.5, "b": 0.5})
    assert objective.combine("fit", BASE)[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="that of the select split is not set"):
        objective.combine("select", MEANS)


def test_normalised_by_the_logarithm_of_the_classes() -> None:
    objective = make({"name": "entropy"})
    assert not objective.needs_base
    value, per_task = objective.combine("fit", MEANS)
    assert per_task == pytest.approx({"a": 0.3 / math.log(2), "b": 1.5 / math.log(20)})
    assert value == pytest.approx(sum(per_task.values()) / 2)
    language = Objective(ObjectiveConfig.model_validate({"terms": [{"name": "entropy"}]}), ["a"], {"a": None})
    assert language.combine("fit", {"a": MEANS["a"]})[0] == pytest.approx(0.3)


def test_accuracy_is_turned_round() -> None:
    objective = make({"name": "accuracy"})
    assert objective.combine("fit", MEANS) == (pytest.approx(0.375), {"a": 0.25, "b": 0.5})
    divided = make({"name": "accuracy", "normalise": "base"})
    divided.set_normalisers("fit", BASE)
    assert divided.combine("fit", MEANS)[1] == pytest.approx({"a": 0.5, "b": 0.5 / 0.8})


def test_weights_of_terms_and_tasks() -> None:
    terms = ({"name": "expert-kl", "weight": 2.0, "normalise": "none"}, {"name": "entropy", "normalise": "none"})
    objective = make(*terms, task_weights={"b": 3})
    value, per_task = objective.combine("fit", MEANS)
    assert per_task == pytest.approx({"a": 0.7, "b": 3.1})
    assert value == pytest.approx(0.25 * 0.7 + 0.75 * 3.1)


def test_shares_of_the_loss_sum_to_the_value() -> None:
    objective = make(
        {"name": "expert-kl", "weight": 0.5}, {"name": "accuracy"}, {"name": "entropy"}, task_weights={"a": 0.2}
    )
    objective.set_normalisers("fit", BASE)
    generator = torch.Generator().manual_seed(0)
    examples = {
        task: {name: torch.rand(n, generator=generator, dtype=torch.float64) for name in MEANS[task]}
        for task, n in (("a", 5), ("b", 7))
    }
    leaves = [values.requires_grad_() for per_term in examples.values() for values in per_term.values()]
    total = torch.zeros((), dtype=torch.float64)
    for task, per_term in examples.items():
        count = len(per_term["entropy"])
        for begin in range(0, count, 2):
            part = {name: values[begin : begin + 2] for name, values in per_term.items()}
            total = total + objective.loss("fit", task, part, count, weight=objective.shares[task])
    means = {t: {name: float(v.detach().mean()) for name, v in per_term.items()} for t, per_term in examples.items()}
    assert float(total.detach()) == pytest.approx(objective.combine("fit", means)[0], rel=1e-12)
    gradients = torch.autograd.grad(total, leaves)
    torch.testing.assert_close(gradients[1], torch.full((5,), 0.5 * (0.2 / 1.2) / 0.4 / 5, dtype=torch.float64))


def test_what_an_objective_needs() -> None:
    assert make({"name": "expert-kl"}).needs == {"teacher"}
    both = make({"name": "expert-kl"}, {"name": "accuracy"})
    assert both.needs == {"teacher", "labels"}
    assert both.labelled
    assert not both.differentiable
    assert make({"name": "entropy"}).differentiable
    assert not make({"name": "entropy"}).labelled


def test_a_base_that_is_already_perfect_does_not_blow_up_its_task() -> None:
    objective = make({"name": "expert-kl"})
    objective.set_normalisers("fit", {"a": {"expert-kl": 0.0}, "b": {"expert-kl": 2.0}})
    assert objective.combine("fit", {"a": {"expert-kl": 1e-3}, "b": {"expert-kl": 1.0}})[1]["a"] == pytest.approx(1.0)
    objective.set_normalisers("fit", {"a": {"expert-kl": 0.0}, "b": {"expert-kl": 0.0}})
    assert objective.combine("fit", MEANS)[1] == {"a": 0.2, "b": 0.8}


def test_a_base_without_a_finite_value_is_refused() -> None:
    with pytest.raises(RunFailed, match="base model's expert-kl on task 'b'"):
        make({"name": "expert-kl"}).set_normalisers("fit", {**BASE, "b": {"expert-kl": math.nan}})


def test_a_base_below_zero_turns_no_term_round() -> None:
    objective = make({"name": "expert-kl"})
    rounding = {"a": {"expert-kl": -1e-8}, "b": {"expert-kl": -1e-8}}  # what fp32 gives where base and expert are one
    objective.set_normalisers("fit", rounding)
    assert objective.combine("fit", MEANS)[1] == {"a": 0.2, "b": 0.8}
    with pytest.raises(RunFailed, match=r"base model's expert-kl on task 'b' \(fit split\) is -2"):
        objective.set_normalisers("fit", {**BASE, "b": {"expert-kl": -2.0}})


def test_a_failed_candidate_has_no_finite_value() -> None:
    objective = make({"name": "entropy"})
    value, per_task = objective.combine("fit", {**MEANS, "b": {"entropy": math.nan}})
    assert math.isnan(value)
    assert math.isfinite(per_task["a"])


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="names 'entropy' twice"):
        make({"name": "entropy"}, {"name": "entropy", "weight": 2})
    with pytest.raises(ConfigError, match="names 'c', which is not a task"):
        make({"name": "entropy"}, task_weights={"c": 1})
    for weights in ({"a": 0, "b": 0}, {"a": -1}):
        with pytest.raises(ConfigError, match="weights of 0 or more"):
            make({"name": "entropy"}, task_weights=weights)
    for weight in (math.nan, math.inf):
        with pytest.raises(ValidationError, match="finite number"):
            make({"name": "entropy"}, task_weights={"b": weight})


def test_metrics_of_the_report() -> None:
    labelled = {
        "causal-lm": ["accuracy", "cross-entropy", "perplexity", "agreement"],
        "token-classification": ["accuracy", "cross-entropy", "f1", "agreement"],
        "sequence-classification": ["accuracy", "cross-entropy", "agreement"],
    }
    for kind, names in labelled.items():
        assert [term.name for term in report_metrics(kind, True)] == names  # type: ignore[arg-type]
        assert [term.name for term in report_metrics(kind, False)] == ["agreement"]  # type: ignore[arg-type]


def test_select_may_be_judged_by_other_terms() -> None:
    objective = make(
        {"name": "entropy", "normalise": "none"},
        select=[{"name": "expert-kl"}, {"name": "accuracy"}],
        task_weights={"b": 3},
    )
    assert objective.on("fit") is objective
    assert objective.on("report") is objective
    chosen = objective.on("select")
    assert [term.name for term in chosen.terms] == ["expert-kl", "accuracy"]
    assert chosen.shares == objective.shares
    assert not objective.needs_base
    assert chosen.needs_base
    assert objective.needs == frozenset()
    assert objective.labelled, "labels are loaded, for select"
    assert objective.differentiable, "nothing is differentiated on select"
    assert objective.answered == ("accuracy",)
    plain = make({"name": "entropy"})
    assert plain.on("select") is plain
    assert plain.answered == ()
    with pytest.raises(ConfigError, match=r"objective\.select names 'entropy' twice"):
        make({"name": "entropy"}, select=[{"name": "entropy"}, {"name": "entropy"}])


@pytest.mark.parametrize(
    ("terms", "select", "wanted"),
    [
        (["entropy"], None, Keep(64, samples=64)),
        ([{"name": "expert-kl", "top_k": 5}], None, Keep(5, samples=64)),
        (
            [{"name": "expert-kl", "top_k": 5, "temperature": 2.0}],
            [{"name": "jensen-shannon", "top_k": 9, "tail_samples": 80}],
            Keep(9, samples=80, temperatures=(2.0,)),
        ),
        ([{"name": "expert-kl", "top_k": 5}, {"name": "jensen-shannon", "top_k": None}], None, Keep(None, samples=64)),
        ([{"name": "hidden-alignment", "layers": [3], "project": 8}], None, Keep(64, (3,), 8, samples=64)),
        (
            [{"name": "hidden-alignment", "layers": [3], "project": 8}],
            [{"name": "hidden-alignment", "layers": [0, 1.0]}],
            Keep(64, (0, 3, 5), None, samples=64),
        ),
    ],
)
def test_what_is_kept_of_the_experts(terms: list[object], select: list[object] | None, wanted: Keep) -> None:
    named = [{"name": term} if isinstance(term, str) else term for term in terms]
    assert make(*named, select=select).keep(6) == wanted  # type: ignore[arg-type]


def test_parts_are_added_once_and_turned_round_where_higher_is_better() -> None:
    objective = make({"name": "expert-kl", "normalise": "none"}, {"name": "l2", "weight": 0.5})
    value, per_task = objective.combine("fit", MEANS, {"l2": 3.0})
    assert value == pytest.approx(0.5 + 0.5 * 3.0)
    assert per_task == objective.combine("fit", MEANS)[1]
    assert objective.combine("fit", MEANS)[0] == pytest.approx(0.5)


def test_terms_of_the_coefficients_give_values_and_the_slope_of_their_sum() -> None:
    objective = make({"name": "entropy"}, {"name": "anchor-l2", "weight": 2.0}, {"name": "l1", "weight": 0.1})
    geometry, coefficients = make_geometry(layers=1)
    table = coefficients.numpy()
    values, slope = objective.regularise(table, geometry, gradient=True)
    assert list(values) == ["anchor-l2", "l1"]
    assert slope is not None
    for cell in np.ndindex(*table.shape):
        moved = []
        for step in (1e-6, -1e-6):
            other = table.copy()
            other[cell] += step
            found, none = objective.regularise(other, geometry, gradient=False)
            assert none is None
            moved.append(2.0 * found["anchor-l2"] + 0.1 * found["l1"])
        assert slope[cell] == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-4, abs=1e-9)
