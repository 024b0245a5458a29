"""What every term must do: the whole registry, with settings that change a term, on both kinds of model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from optmerge.config.objectives import TERM_CONFIGS, ObjectiveConfig
from optmerge.objective import (
    COEFFICIENT_TERMS,
    TERMS,
    CoefficientTerm,
    ModelTerm,
    Objective,
    Outputs,
    TeacherBatch,
    TeacherOutputs,
    base,
    term_class,
)
from optmerge.objective import make_term as make_any_term
from optmerge.objective.kept import Keep
from optmerge.objective.registry import WHOLE_MODEL_TERMS
from optmerge.objective.whole import WholeModelTerm

from .cases import CLASSES, LAYERS, Case, make_case, make_geometry

Settings = dict[str, object]

KIND_OF = {"model": ModelTerm, "coefficients": CoefficientTerm, "whole-model": WholeModelTerm}
KINDS = ["classifier", "lm"]
UNITS = {"nats", "share", "classes", "activation squared", "coefficient", "coefficient squared", "cosine"}
SETTINGS: dict[str, list[Settings]] = {
    "expert-kl": [{"temperature": 2.0}],
    "information-maximisation": [{"diversity": 0.3}],
    "pseudo-label": [{"filter": "none"}],
    "hidden-alignment": [{"layers": [0, 1.0]}],
    "anchor-l1": [{"scale": "none"}],
    "anchor-l2": [{"scale": "none"}],
}
VARIANTS = [(name, settings) for name in TERMS for settings in ({}, *SETTINGS.get(name, []))]
REGULARISERS = [(name, settings) for name in COEFFICIENT_TERMS for settings in ({}, *SETTINGS.get(name, []))]
both = pytest.mark.parametrize("kind", KINDS)
every_term = pytest.mark.parametrize("name", list(TERMS))
every_variant = pytest.mark.parametrize(("name", "settings"), VARIANTS)
every_regulariser = pytest.mark.parametrize(("name", "settings"), REGULARISERS)


def model_term(name: str) -> type[ModelTerm]:
    found = term_class(name)
    assert issubclass(found, ModelTerm)
    return found


def make_term(name: str, settings: Settings) -> ModelTerm:
    made = make_any_term(TERM_CONFIGS[name](**settings))
    assert isinstance(made, ModelTerm)
    return made


def make_regulariser(name: str, settings: Settings) -> CoefficientTerm:
    made = make_any_term(TERM_CONFIGS[name](**settings))
    assert isinstance(made, CoefficientTerm)
    return made


def teacher_of(case: Case, k: int | None = None) -> TeacherOutputs:
    """All classes, or k of them and two draws from among the others."""
    keep = Keep(k, tuple(range(LAYERS)), samples=2, temperatures=(2.0,))
    return TeacherOutputs.collect([case.batch(case.everything())], keep)


def values(term: ModelTerm, case: Case, teacher: TeacherOutputs, positions: list[int], **padding: object) -> Tensor:
    batch, outputs = case.batch(positions, **padding)  # type: ignore[arg-type]
    return term.per_example(outputs, batch, teacher.batch(batch))


def test_the_registry_has_the_names_of_the_configuration() -> None:
    registered = {**TERMS, **COEFFICIENT_TERMS, **WHOLE_MODEL_TERMS}
    assert set(registered) == set(TERM_CONFIGS)
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


@pytest.mark.parametrize("name", [*TERMS, *COEFFICIENT_TERMS])
def test_a_term_says_what_it_is(name: str) -> None:
    term = term_class(name)
    assert not issubclass(term, WholeModelTerm)
    assert term.unit in UNITS
    assert term.paper
    assert term.__doc__
    assert "_" not in term.name
    if issubclass(term, ModelTerm):
        assert term.needs <= {"labels", "teacher", "hidden"}
        assert term.higher_is_better == (term.unit == "share")


@every_variant
@both
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("rows_at_once", [1 << 20, 2])
def test_batch_size_and_padding_change_nothing(
    name: str, settings: Settings, kind: str, k: int | None, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, teacher = make_case(kind), teacher_of(make_case(kind, seed=1), k)
    term = make_term(name, settings)
    whole = values(term, case, teacher, [0, 1, 2, 3])
    assert len(whole) == 4
    assert whole.dim() == (2 if term.summary else 1)
    monkeypatch.setattr(base, "CHUNK", rows_at_once * CLASSES)
    for padding in ({"left": True}, {"extra": 5}, {"left": True, "extra": 2}):
        torch.testing.assert_close(values(term, case, teacher, [0, 1, 2, 3], **padding), whole)
    alone = torch.cat([values(term, case, teacher, [p]) for p in range(4)])
    torch.testing.assert_close(alone, whole)
    torch.testing.assert_close(values(term, case, teacher, [3, 0]), whole[[3, 0]])
    assert term.finish(whole.double().mean(0)).shape == ()


@every_variant
@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_are_fp32_whatever_the_outputs_are(name: str, settings: Settings, kind: str, dtype: torch.dtype) -> None:
    case = make_case(kind, dtype=dtype)
    precise = replace(case, logits=[z.float() for z in case.logits], hidden=[h.float() for h in case.hidden])
    teacher = teacher_of(make_case(kind, seed=1))
    got = values(make_term(name, settings), case, teacher, [0, 1, 2, 3])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, values(make_term(name, settings), precise, teacher, [0, 1, 2, 3]))


@pytest.mark.parametrize("rows_at_once", [1 << 20, 2])
@pytest.mark.parametrize(("name", "settings"), [each for each in VARIANTS if TERM_CONFIGS[each[0]].differentiable])
@both
@pytest.mark.parametrize("k", [None, 3])
def test_gradients_are_finite_differences(
    name: str, settings: Settings, kind: str, k: int | None, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the finished value over two batches, by logits and hidden states."""
    monkeypatch.setattr(base, "CHUNK", rows_at_once * CLASSES)
    case, teacher = make_case(kind, dtype=torch.float64), teacher_of(make_case(kind, seed=1), k)
    batches = [case.batch([0, 1]), case.batch([2, 3])]
    term = make_term(name, settings)

    def value(*leaves: Tensor) -> Tensor:
        examples = []
        for number, (batch, _) in enumerate(batches):
            logits, *hidden = leaves[number * (1 + LAYERS) : (number + 1) * (1 + LAYERS)]
            outputs = Outputs(logits, dict(enumerate(hidden)))
            examples.append(term.per_example(outputs, batch, teacher.batch(batch)))
        return term.finish(torch.cat(examples).mean(0))

    leaves = [leaf for _, outputs in batches for leaf in (outputs.logits, *outputs.hidden.values())]
    leaves = [leaf.clamp(-20, 20).requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(value, leaves, fast_mode=True)
    slopes = torch.autograd.grad(value(*leaves), leaves, allow_unused=True)
    assert any(slope is not None and bool((slope != 0).any()) for slope in slopes)


@every_variant
@both
@pytest.mark.parametrize("k", [None, CLASSES - 1, 1])
def test_impossible_classes_give_finite_values(name: str, settings: Settings, kind: str, k: int | None) -> None:
    def without_last(case: Case) -> Case:
        for logits in case.logits:
            logits[..., -1] = -math.inf
        ids = [[min(i, 5) for i in row] for row in case.ids]
        return replace(case, ids=ids)

    case, teacher = without_last(make_case(kind)), teacher_of(without_last(make_case(kind, seed=1)), k)
    batch, outputs = case.batch([0, 1, 2, 3])
    outputs.logits.requires_grad_()
    term = make_term(name, settings)
    got = term.finish(term.per_example(outputs, batch, teacher.batch(batch)).mean(0))
    assert bool(got.isfinite())
    if term.differentiable and "hidden" not in term.needs:
        got.backward()  # type: ignore[no-untyped-call]
        assert outputs.logits.grad is not None
        assert bool(outputs.logits.grad.isfinite().all())


@pytest.mark.parametrize("name", list(TERMS))
@pytest.mark.parametrize("normalise", ["none", "base", "log-classes"])
def test_permuting_tasks_permutes_what_comes_out(name: str, normalise: str) -> None:
    term: Settings = {"name": name, "normalise": normalise}
    if name == "information-maximisation" and normalise == "base":
        with pytest.raises(ValueError, match="log-classes"):
            ObjectiveConfig.model_validate({"terms": [term]})
        return
    config = ObjectiveConfig.model_validate({"terms": [term], "task_weights": {"b": 2.0}})
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
    bare = replace(batch, targets=None)
    term = make_term(name, {})
    if not term.needs:
        assert len(term.per_example(outputs, bare, None)) == 2
        return
    with pytest.raises(ValueError, match=f"term {name} needs"):
        term.per_example(outputs, bare, None)


@every_regulariser
def test_a_regulariser_is_a_precise_number_with_a_finite_gradient(name: str, settings: Settings) -> None:
    geometry, coefficients = make_geometry()
    term = make_regulariser(name, settings)
    value = term.value(coefficients.requires_grad_(), geometry)
    assert value.shape == ()
    assert value.dtype == torch.float64
    for point in (geometry.start.clone(), torch.zeros_like(geometry.start)):  # where roots and absolute values bend
        (slope,) = torch.autograd.grad(term.value(point.requires_grad_(), geometry), point)
        assert bool(slope.isfinite().all())


@every_regulariser
def test_a_regularisers_gradient_is_finite_differences(name: str, settings: Settings) -> None:
    geometry, coefficients = make_geometry()
    term = make_regulariser(name, settings)
    assert torch.autograd.gradcheck(lambda c: term.value(c, geometry), coefficients.requires_grad_())
    (slope,) = torch.autograd.grad(term.value(coefficients, geometry), coefficients)
    assert bool((slope[geometry.free] != 0).any())
    assert not bool(slope[~geometry.free].any())


@every_regulariser
def test_permuting_directions_changes_no_regulariser(name: str, settings: Settings) -> None:
    geometry, coefficients = make_geometry()
    order = [2, 0, 1]
    permuted, _ = make_geometry()
    for part in ("start", "lower", "upper", "free"):
        setattr(permuted, part, getattr(geometry, part)[:, order])
    permuted.__dict__["norms"] = geometry.norms[:, order]
    term = make_regulariser(name, settings)
    value = term.value(coefficients, geometry)
    torch.testing.assert_close(term.value(coefficients[:, order], permuted), value, rtol=1e-12, atol=0)


@every_regulariser
def test_a_frozen_coefficient_counts_for_nothing(name: str, settings: Settings) -> None:
    geometry, coefficients = make_geometry()
    term = make_regulariser(name, settings)
    value = term.value(coefficients, geometry)
    moved = torch.where(geometry.free, coefficients, 5.0)
    torch.testing.assert_close(term.value(moved, geometry), value, rtol=0, atol=0)


@every_variant
@both
def test_no_term_waits_for_its_device(name: str, settings: Settings, kind: str) -> None:
    """On the meta device there are no values to look at, so that whatever would synchronise raises."""
    case, teacher = make_case(kind), teacher_of(make_case(kind, seed=1), 3)
    batch, outputs = case.batch([0, 1, 2, 3])
    known = teacher.batch(batch)
    assert known.indices is not None
    assert known.drawn is not None
    assert known.drawn_log_probs is not None
    away = TeacherBatch(
        known.log_probs.to("meta"),
        known.indices.to("meta"),
        known.choice.to("meta"),
        known.drawn.to("meta"),
        known.drawn_log_probs.to("meta"),
        {temperature: noted.to("meta") for temperature, noted in known.tempered.items()},
        {layer: states.to("meta") for layer, states in known.hidden.items()},
    )
    hidden = {layer: states.to("meta").requires_grad_() for layer, states in outputs.hidden.items()}
    said = Outputs(outputs.logits.to("meta").requires_grad_(), hidden)
    term = make_term(name, settings)
    value = term.finish(term.per_example(said, batch.to("meta"), away).mean(0))
    assert value.device.type == "meta"
    assert value.requires_grad == term.differentiable
