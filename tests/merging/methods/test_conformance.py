"""What every method promises, over every kind of tensor and dtype."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from optmerge.config.methods import METHOD_CONFIGS, MethodConfig
from optmerge.merging.methods import Method, TensorKind, vectors
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, prepared, random

SETTINGS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in METHOD_CONFIGS),
    ("linear", {"normalize": False}),
    ("ties", {"compat": "mergekit", "density": 0.5}),
    ("ties", {"scope": "row", "normalize": False}),
    ("ties", {"scope": "stacked"}),
    ("dare", {"compat": "mergekit", "drop": 0.3}),
    ("dare-ties", {"compat": "mergekit"}),
    ("dare-ties", {"scope": "tensor", "drop": 0.2, "density": 0.8}),
    ("ties-split", {"scope": "row", "density": 0.6}),
    ("iso-c", {"embeddings": "sum", "others": "base"}),
    ("tsv-m", {"embeddings": "mean", "others": "sum"}),
    ("tsv-m", {"ranks": 1.6}),
    ("star", {"share": 0.9, "embeddings": "mean", "others": "sum"}),
    ("iso-cts", {"common": 0.3, "embeddings": "sum", "others": "base"}),
    ("drm", {"direction": "vertical", "drop": 0.3, "embeddings": "matrix", "others": "mean"}),
    ("opcm", {"share": 0.2, "embeddings": "matrix", "others": "mean"}),
    ("regmean", {"others": "base"}),
    ("regmean++", {"others": "base", "shrink": 0.5}),
    ("fisher", {"normalize": False, "floor": 0.1}),
    ("mats", {"objective": "grams", "shrink": 0.7}),
    ("mats", {"iterations": 3, "start": 0.0, "others": "base"}),
    ("led", {"density": 0.1, "densities": {"expert-0": 0.6}}),
    ("sens", {"favour": "near", "temperature": 0.1}),
    ("slerp", {"compat": "mergekit"}),
    ("nuslerp", {"scope": "row", "origin": "zero"}),
    ("nuslerp", {"scope": "column"}),
    ("nuslerp", {"scope": "row", "compat": "mergekit"}),
    ("multislerp", {"origin": "zero"}),
    ("multislerp", {"compat": "mergekit"}),
    ("karcher", {"origin": "base", "compat": "mergekit"}),
    ("model_stock", {"scope": "row", "average": "angle"}),
    ("model_stock", {"scope": "row", "compat": "mergekit"}),
    ("passthrough", {"take": {"mlp.*": "base", "norm": "expert-0"}}),
    ("breadcrumbs", {"compat": "mergekit", "density": 0.6, "outliers": 0.2}),
    ("breadcrumbs", {"scope": "model", "density": 0.5, "outliers": 0.1}),
    ("breadcrumbs-ties", {"scope": "stacked", "density": 0.5, "outliers": 0.1, "normalize": True}),
    ("della", {"compat": "mergekit", "drop": 0.5, "epsilon": 0.2}),
    ("della-linear", {"drop": 0.5, "epsilon": 0.45}),
    ("pcb", {"balance": "raw", "density": 0.3, "clip": 0.1}),
    ("pcb", {"density": 1.0, "clip": 0.0}),
    ("sce", {"selected": "shares", "density": 0.3}),
    ("sce", {"compat": "mergekit", "density": 0.5}),
    ("sce", {"density": 1.0}),
    ("widen", {"ratio": 0.5, "embeddings": "sum", "others": "mean"}),
    ("doge", {"scope": "row", "project": "update", "steps": 20, "embeddings": "matrix", "others": "mean"}),
    ("doge", {"density": 1.0, "steps": 5}),
    ("wudi", {"steps": 20, "embeddings": "matrix", "others": "base"}),
    ("wudi", {"solver": "exact", "embeddings": "matrix", "others": "sum"}),
    ("wudi-2", {"experts": "adapters", "ranks": 2.0, "steps": 20, "embeddings": "matrix", "others": "sum"}),
]
WEIGHTED = [(name, settings) for name, settings in SETTINGS if "weights" in METHOD_CONFIGS[name].model_fields]
LINEAR = {"average", "linear", "task_arithmetic", "dare", "ties-split", "tsv-m", "passthrough", "star", "drm"}
LINEAR |= {"breadcrumbs", "della-linear", "pcb", "varm", "metagpt"}
ENERGIES = {"sce", "varm", "metagpt", "pcb"}  # sums of squares; pcb: tanh, whose last bit depends on the vector unit
LINEAR |= {"widen", "led", "sens"}
ANGLES = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock"}  # of whole tensors, or of their rows

every_setting = pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=lambda value: str(value))


def experts_for(name: str, wanted: int) -> int:
    least, most = METHOD_CONFIGS[name].facts.experts
    return max(least, min(wanted, most or wanted))


def method(name: str, settings: dict[str, object], models: ToyModels) -> Method:
    config: MethodConfig = METHOD_CONFIGS[name].model_validate(settings)  # type: ignore[assignment]
    return prepared(config, models)


def deltas(name: str, settings: dict[str, object], models: ToyModels) -> dict[str, torch.Tensor]:
    built = method(name, settings, models)
    return {parameter: built.delta(models, parameter) for parameter in models.names}


def changed(models: ToyModels, change: Callable[[str, str, torch.Tensor], torch.Tensor]) -> ToyModels:
    """The same models with every expert's parameter replaced by ``change(expert, name, task vector)`` on the base."""
    base = {name: models.base(name) for name in models.names}
    experts = {
        expert: {name: base[name] + change(expert, name, models.task_vector(expert, name)) for name in models.names}
        for expert in models.experts
    }
    return ToyModels(base, experts, kinds=KINDS, statistics=models.statistics)


@every_setting
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_shape_dtype_and_finite(name: str, settings: dict[str, object], dtype: torch.dtype, count: int) -> None:
    models = every_kind(experts_for(name, count), dtype=dtype)
    for parameter, delta in deltas(name, settings, models).items():
        assert delta.shape == KINDS[parameter].shape
        assert delta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert delta.is_contiguous()
        assert torch.isfinite(delta).all()


@every_setting
def test_models_are_left_alone_and_the_result_is_bitwise_repeatable(name: str, settings: dict[str, object]) -> None:
    models, untouched = (every_kind(experts_for(name, 3)) for _ in range(2))
    first = deltas(name, settings, models)
    torch.manual_seed(99)
    again = method(name, settings, models)
    for parameter in reversed(models.names):
        assert torch.equal(again.delta(models, parameter), first[parameter])
        assert torch.equal(models.base(parameter), untouched.base(parameter))
        for expert in models.experts:
            assert torch.equal(models.expert(expert, parameter), untouched.expert(expert, parameter))


@every_setting
def test_parts_that_are_declared_alone_are_the_same_whoever_else_is_merged(
    name: str, settings: dict[str, object]
) -> None:
    facts = METHOD_CONFIGS[name].facts
    if not facts.linear or any(isinstance(value, dict) for value in settings.values()):  # these name experts
        return
    models = every_kind(3)
    base = {parameter: models.base(parameter) for parameter in models.names}
    left = {who: {p: models.expert(who, p) for p in models.names} for who in models.experts[1:]}
    fewer = ToyModels(base, left, kinds=KINDS, statistics=models.statistics)
    among, apart = method(name, settings, models), method(name, settings, fewer)
    same = all(
        torch.equal(mine, theirs)
        for parameter in models.names
        for mine, theirs in zip(
            among.expert_deltas(models, parameter)[1:], apart.expert_deltas(fewer, parameter), strict=True
        )
    )
    assert same or not facts.alone
    if not settings:
        assert facts.alone == same, "what is declared is so at the usual settings"


@every_setting
def test_large_tensors_are_left_alone(name: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read otherwise from some size on, a sample, is a copy too, where the stored dtype is the working one."""
    if METHOD_CONFIGS[name].facts.needs or "take" in settings:
        return
    monkeypatch.setattr("optmerge.merging.methods.selection._WHOLE", 0)
    generator = torch.Generator().manual_seed(0)
    kinds = {"matrix": TensorKind("mlp", False, (60, 70)), "vector": TensorKind("norm", False, (4200,))}
    whole = [
        {parameter: random(generator, *kind.shape, dtype=torch.float32) for parameter, kind in kinds.items()}
        for _ in range(1 + experts_for(name, 2))
    ]
    base, *tuned = [{parameter: value.clone() for parameter, value in model.items()} for model in whole]
    models = ToyModels(base, {f"expert-{number}": model for number, model in enumerate(tuned)}, kinds=kinds)
    deltas(name, settings, models)
    for model, untouched in zip((base, *tuned), whole, strict=True):
        for parameter, value in untouched.items():
            assert torch.equal(model[parameter], value)


@every_setting
def test_where_every_expert_is_the_base_a_method_says_whether_it_keeps_it(
    name: str, settings: dict[str, object]
) -> None:
    models = changed(every_kind(experts_for(name, 3)), lambda expert, parameter, tau: torch.zeros_like(tau))
    built = method(name, settings, models)
    assert built.keeps_base == ((name, settings) != ("linear", {"normalize": False}))
    for parameter in models.names:
        expected = torch.zeros(KINDS[parameter].shape) if built.keeps_base else 2 * models.base(parameter)
        torch.testing.assert_close(built.delta(models, parameter), expected, rtol=1e-6, atol=1e-6)


@every_setting
def test_parameters_from_several_threads(name: str, settings: dict[str, object]) -> None:
    models = every_kind(experts_for(name, 3))
    expected = deltas(name, settings, models)
    built = method(name, settings, models)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(partial(built.delta, models), models.names * 3))
    for parameter, result in zip(models.names * 3, results, strict=True):
        assert torch.equal(result, expected[parameter])


@every_setting
def test_fp32_agrees_with_fp64(name: str, settings: dict[str, object]) -> None:
    models = every_kind(experts_for(name, 3), dtype=torch.float32)
    base = {parameter: models.base(parameter).double() for parameter in models.names}
    experts = {
        expert: {parameter: models.expert(expert, parameter).double() for parameter in models.names}
        for expert in models.experts
    }
    double = changed(ToyModels(base, experts, kinds=KINDS), lambda expert, parameter, tau: tau)
    double.statistics = models.statistics
    for parameter, exact in deltas(name, settings, double).items():
        result = method(name, settings, models).delta(models, parameter)
        torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=2e-5, msg=parameter)


@every_setting
def test_chunks_do_not_matter(name: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    models = every_kind(experts_for(name, 3))
    expected = deltas(name, settings, models)
    monkeypatch.setattr(vectors.RawVectors.__init__, "__kwdefaults__", {"by_rows": False, "limit": 7})
    monkeypatch.setattr("optmerge.merging.methods.combination.CHUNK", 7)
    for parameter, delta in deltas(name, settings, models).items():
        # Sums over a tensor (a norm, an angle) are rounded chunk by chunk; everything else is bitwise the same.
        exact = name not in ANGLES | ENERGIES and settings.get("compat") != "mergekit"
        torch.testing.assert_close(delta, expected[parameter], rtol=0 if exact else 1e-6, atol=0 if exact else 1e-7)


@every_setting
def test_the_order_of_experts_does_not_matter(name: str, settings: dict[str, object]) -> None:
    models = every_kind(experts_for(name, 3), dtype=torch.float64)
    if name == "slerp":
        settings = {"t": 0.5}
    if name == "passthrough":
        settings = {**settings, "expert": "expert-0"}  # by default it is the first
    if name == "opcm":
        settings = {**settings, "order": list(models.experts)}  # by default that in which they are listed
    base = {parameter: models.base(parameter) for parameter in models.names}
    experts = {
        expert: {parameter: models.expert(expert, parameter) for parameter in models.names}
        for expert in reversed(models.experts)
    }
    turned = ToyModels(base, experts, kinds=KINDS, statistics=models.statistics)
    expected = deltas(name, settings, models)
    for parameter, delta in deltas(name, settings, turned).items():
        torch.testing.assert_close(delta, expected[parameter], msg=parameter)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("average", {}),
        ("linear", {"weights": {"expert-0": 2.0}}),
        ("task_arithmetic", {}),
        ("slerp", {"t": 1.0}),
        ("ties", {"density": 1.0}),
        ("ties", {"density": 1.0, "compat": "mergekit"}),
        ("dare", {"drop": 0.0}),
        ("dare-ties", {"drop": 0.0, "density": 1.0}),
        ("ties-split", {"density": 1.0}),
        ("tsv-m", {}),
        ("widen", {}),
        ("wudi", {}),
        ("wudi", {"solver": "exact", "embeddings": "matrix"}),
        ("wudi-2", {}),
        ("wudi-2", {"experts": "adapters", "embeddings": "matrix"}),
        ("star", {"share": 1.0}),
        ("drm", {"drop": 0.0, "tolerance": 0.0}),
        ("opcm", {}),
        ("breadcrumbs", {"density": 1.0, "outliers": 0.0}),
        ("breadcrumbs-ties", {"density": 1.0, "compat": "mergekit"}),
        ("della", {"drop": 0.0}),
        ("sce", {}),
        ("varm", {}),
        ("metagpt", {}),
        ("regmean", {}),
        ("regmean++", {}),
        ("fisher", {}),
        ("mats", {"tolerance": 1e-12, "iterations": 1000}),
        ("sens", {}),
        ("multislerp", {}),
        ("karcher", {}),
        ("passthrough", {}),
    ],
)
def test_one_expert_is_the_merge(name: str, settings: dict[str, object]) -> None:
    models = every_kind(1)
    for parameter, delta in deltas(name, settings, models).items():
        torch.testing.assert_close(delta, models.task_vector("expert-0", parameter), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["average", "linear", "regmean", "regmean++", "passthrough", *sorted(ANGLES | ENERGIES - {"pcb"})]
)
def test_identical_experts_are_the_merge(name: str) -> None:
    models = every_kind(2)
    first = {parameter: models.task_vector("expert-0", parameter) for parameter in models.names}
    same = changed(models, lambda expert, parameter, tau: first[parameter])
    for parameter, delta in deltas(name, {}, same).items():
        torch.testing.assert_close(delta, first[parameter], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [None, {"expert-0": 0.0, "expert-1": -2.0}])
@every_setting
def test_the_linear_law(name: str, settings: dict[str, object], weights: dict[str, float] | None) -> None:
    models = every_kind(experts_for(name, 3), dtype=torch.float64)
    if weights is not None and (name not in LINEAR or (name, settings) not in WEIGHTED):
        weights = None  # weights below 0, or none at all, are not for this method
    built = method(name, settings | ({"weights": weights} if weights else {}), models)
    assert built.linear == (name in LINEAR and settings.get("normalize", True) is True)
    facts = METHOD_CONFIGS[name].facts
    assert facts.linear == (name in LINEAR - {"average", "linear"})  # of which the coefficients are the whole method
    assert built.needs <= set(facts.needs)
    if not built.linear:
        return
    plain = method(name, settings, models)
    for parameter in models.names:
        parts = built.expert_deltas(models, parameter)
        total = sum(weight * part for weight, part in zip(built.weights, parts, strict=True))
        torch.testing.assert_close(total, built.delta(models, parameter))
        for part, other in zip(parts, plain.expert_deltas(models, parameter), strict=True):
            assert torch.equal(part, other)  # they do not depend on the weights


def test_averages_and_sums_in_closed_form() -> None:
    models = every_kind(3, dtype=torch.float64)
    weights = {"expert-0": 0.5, "expert-1": -1.0, "expert-2": 2.0}
    for parameter in models.names:
        base = models.base(parameter)
        experts = torch.stack([models.expert(expert, parameter) for expert in models.experts])
        shares = torch.tensor(list(weights.values()), dtype=torch.float64).reshape(-1, *[1] * base.ndim)
        expected = {
            ("average", ()): experts.mean(0) - base,
            ("linear", ()): (shares * experts).sum(0) / 1.5 - base,
            ("linear", ("normalize",)): (shares * experts).sum(0) - base,
            ("task_arithmetic", ()): (shares * (experts - base)).sum(0),
        }
        for (name, off), delta in expected.items():
            settings: dict[str, object] = {key: False for key in off}
            if name != "average":
                settings["weights"] = weights
            torch.testing.assert_close(method(name, settings, models).delta(models, parameter), delta)
