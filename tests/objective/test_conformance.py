"""What every term must do, run over the whole registry and both kinds of model."""

from __future__ import annotations

import math

import pytest
import torch

from optmerge.config.objectives import TERM_CONFIGS, ObjectiveConfig
from optmerge.objective import (
    COEFFICIENT_TERMS,
    TERMS,
    CoefficientTerm,
    ModelTerm,
    Objective,
    Outputs,
    TeacherOutputs,
    base,
    term_class,
)
from optmerge.objective.registry import REPORT_ONLY, WHOLE_MODEL_TERMS
from optmerge.objective.whole import WholeModelTerm

from .cases import CLASSES, Case, make_case

KIND_OF = {"model": ModelTerm, "coefficients": CoefficientTerm, "whole-model": WholeModelTerm}
KINDS = ["classifier", "lm"]
NAMES = list(TERMS)
both = pytest.mark.parametrize("kind", KINDS)
every_term = pytest.mark.parametrize("name", NAMES)


def make_term(name: str, **settings: object) -> ModelTerm:
    made = model_term(name)(TERM_CONFIGS[name](**settings) if name in TERM_CONFIGS else None)
    assert isinstance(made, ModelTerm)
    return made


def model_term(name: str) -> type[ModelTerm]:
    found = term_class(name)
    assert issubclass(found, ModelTerm)
    return found


def teacher_of(case: Case, k: int | None = None) -> TeacherOutputs:
    return TeacherOutputs.collect([case.batch(case.everything())], k)


def values(
    term: ModelTerm, case: Case, teacher: TeacherOutputs, positions: list[int], **padding: object
) -> torch.Tensor:
    batch, outputs = case.batch(positions, **padding)  # type: ignore[arg-type]
    return term.per_example(outputs, batch, teacher.batch(batch))


def test_the_registry_has_the_names_of_the_configuration() -> None:
    registered = {**TERMS, **COEFFICIENT_TERMS, **WHOLE_MODEL_TERMS}
    assert set(registered) - set(REPORT_ONLY) == set(TERM_CONFIGS)
    assert len(registered) == len(TERMS) + len(COEFFICIENT_TERMS) + len(WHOLE_MODEL_TERMS)
    assert all(name == term_class(name).name for name in registered)


@pytest.mark.parametrize("name", TERM_CONFIGS)
def test_settings_and_class_say_the_same(name: str) -> None:
    config, term = TERM_CONFIGS[name], term_class(name)
    assert issubclass(term, KIND_OF[config.about])
    if not issubclass(term, WholeModelTerm):
        assert config.differentiable == term.differentiable
    if issubclass(term, ModelTerm):
        assert config.labelled == ("labels" in term.needs)


@every_term
def test_a_term_says_what_it_is(name: str) -> None:
    term = model_term(name)
    assert term.unit in {"nats", "share"}
    assert term.paper
    assert term.__doc__
    assert term.needs <= {"labels", "teacher", "hidden"}
    assert term.higher_is_better == (term.unit == "share")


@every_term
@both
@pytest.mark.parametrize("k", [None, 3])
def test_batch_size_and_padding_change_nothing(name: str, kind: str, k: int | None) -> None:
    case, teacher = make_case(kind), teacher_of(make_case(kind, seed=1), k)
    term = make_term(name)
    whole = values(term, case, teacher, [0, 1, 2, 3])
    assert whole.shape == (4,)
    for padding in ({"left": True}, {"extra": 5}, {"left": True, "extra": 2}):
        torch.testing.assert_close(values(term, case, teacher, [0, 1, 2, 3], **padding), whole)
    alone = torch.cat([values(term, case, teacher, [p]) for p in range(4)])
    torch.testing.assert_close(alone, whole)
    torch.testing.assert_close(values(term, case, teacher, [3, 0]), whole[[3, 0]])


@every_term
@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_are_fp32_whatever_the_logits_are(name: str, kind: str, dtype: torch.dtype) -> None:
    case = make_case(kind, dtype=dtype)
    precise = Case(case.kind, [logits.float() for logits in case.logits], case.ids, case.completions)
    teacher = teacher_of(make_case(kind, seed=1))
    got = values(make_term(name), case, teacher, [0, 1, 2, 3])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, values(make_term(name), precise, teacher, [0, 1, 2, 3]))


DIFFERENTIABLE = [(name, {}) for name in TERMS if model_term(name).differentiable] + [
    ("expert-kl", {"temperature": 2.0})
]


@pytest.mark.parametrize("rows_at_once", [1 << 20, 2])
@pytest.mark.parametrize(("name", "settings"), DIFFERENTIABLE)
@both
@pytest.mark.parametrize("k", [None, 3])
def test_gradients_are_finite_differences(
    name: str, settings: dict[str, float], kind: str, k: int | None, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHUNK", rows_at_once * CLASSES)
    case, teacher = make_case(kind, dtype=torch.float64), teacher_of(make_case(kind, seed=1), k)
    batch, outputs = case.batch([0, 1, 2, 3])
    logits = outputs.logits.clamp(-20, 20).requires_grad_()
    term = make_term(name, **settings)
    assert torch.autograd.gradcheck(
        lambda z: term.per_example(Outputs(z), batch, teacher.batch(batch)), logits, fast_mode=True
    )


@every_term
@both
def test_impossible_classes_give_finite_values(name: str, kind: str) -> None:
    def without_last(case: Case) -> Case:
        for logits in case.logits:
            logits[..., -1] = -math.inf
        ids = [[min(i, 5) for i in row] for row in case.ids]
        return Case(case.kind, case.logits, ids, case.completions)

    case, teacher = without_last(make_case(kind)), teacher_of(without_last(make_case(kind, seed=1)))
    batch, outputs = case.batch([0, 1, 2, 3])
    outputs.logits.requires_grad_()
    got = make_term(name).per_example(outputs, batch, teacher.batch(batch))
    assert bool(got.isfinite().all())
    if model_term(name).differentiable:
        got.sum().backward()
        assert outputs.logits.grad is not None
        assert bool(outputs.logits.grad.isfinite().all())


@pytest.mark.parametrize("name", list(TERM_CONFIGS))
@pytest.mark.parametrize("normalise", ["none", "base", "log-classes"])
def test_permuting_tasks_permutes_what_comes_out(name: str, normalise: str) -> None:
    config = ObjectiveConfig.model_validate(
        {"terms": [{"name": name, "normalise": normalise}], "task_weights": {"b": 2.0}}
    )
    base_means = {"a": {name: 0.9}, "b": {name: 0.4}, "c": {name: 0.7}}
    means = {"a": {name: 0.5}, "b": {name: 0.3}, "c": {name: 0.1}}
    results = []
    for tasks in (["a", "b", "c"], ["c", "a", "b"]):
        objective = Objective(config, tasks, {"a": 2, "b": 20, "c": 3})
        objective.set_normalisers("fit", {task: base_means[task] for task in tasks})
        results.append(objective.combine("fit", {task: means[task] for task in tasks}))
    assert results[0][1] == results[1][1]
    assert list(results[1][1]) == ["c", "a", "b"]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-15)


@every_term
def test_what_is_needed_must_be_there(name: str) -> None:
    batch, outputs = make_case("classifier").batch([0, 1])
    bare = type(batch)(batch.inputs, batch.positions)
    if not model_term(name).needs:
        assert make_term(name).per_example(outputs, bare, None).shape == (2,)
        return
    with pytest.raises(ValueError, match=f"term {name} needs"):
        make_term(name).per_example(outputs, bare, None)
