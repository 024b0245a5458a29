"""Arcs and means on the sphere against their closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.config.methods import METHOD_CONFIGS, MethodConfig, SlerpConfig
from optmerge.errors import ConfigError
from optmerge.merging.methods import build_method
from optmerge.merging.methods.combination import inner_products
from optmerge.merging.methods.sphere import COLLINEAR, STRAIGHT, arc, spherical_mean
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, random


def slerp(first: torch.Tensor, second: torch.Tensor, t: float, base: torch.Tensor | None = None) -> torch.Tensor:
    origin = torch.full_like(first, 0.25) if base is None else base
    models = ToyModels({"w": origin}, {"one": {"w": first}, "two": {"w": second}})
    return build_method(SlerpConfig(t=t), models.experts).delta(models, "w") + origin


@pytest.fixture
def ends() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return random(generator, 300, 130), random(generator, 300, 130)  # more than one chunk


def test_the_formula(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = ends
    angle = math.acos(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0).item())
    expected = (math.sin(0.7 * angle) * first + math.sin(0.3 * angle) * second) / math.sin(angle)
    torch.testing.assert_close(slerp(first, second, 0.3), expected)


def test_endpoints_swap_and_scale(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = ends
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    torch.testing.assert_close(slerp(first, second, 0.3), slerp(second, first, 0.7))
    torch.testing.assert_close(slerp(3 * first, 3 * second, 0.3), 3 * slerp(first, second, 0.3))


def test_the_norm_of_unit_tensors_is_kept(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = (end / torch.linalg.vector_norm(end) for end in ends)
    assert torch.linalg.vector_norm(slerp(first, second, 0.4)).item() == pytest.approx(1)


def test_lines_where_there_is_no_arc(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = ends
    torch.testing.assert_close(slerp(torch.zeros_like(second), second, 0.3), 0.3 * second)
    torch.testing.assert_close(slerp(first, 2 * first, 0.3), 1.3 * first)
    torch.testing.assert_close(slerp(first, -first, 0.5), torch.zeros_like(first))
    near, apart = (
        arc(torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64), t=0.5, line=COLLINEAR)[0].item()
        for cosine in (0.9996, 0.9994)
    )
    assert near == 0.5
    assert 0.5 < apart == pytest.approx(0.5, rel=2e-4)


def test_one_expert_is_interpolated_with_the_base(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = ends
    models = ToyModels({"w": first}, {"two": {"w": second}})
    delta = build_method(SlerpConfig(t=0.2), models.experts).delta(models, "w")
    torch.testing.assert_close(first + delta, slerp(first, second, 0.2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slerp", r"there are 3 experts \(a, b, c\).*two experts, or one"),
        ("nuslerp", r"there are 3 \(a, b, c\).*Use slerp for one.*karcher for more"),
    ],
)
def test_other_numbers_of_experts_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(METHOD_CONFIGS[name](), ["a", "b", "c"])  # type: ignore[arg-type]


def test_mergekit_turns_a_right_angle_to_a_tensor_of_zeros(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, second = ends
    models = ToyModels({"w": second + 1}, {"one": {"w": torch.zeros_like(second)}, "two": {"w": second}})
    for name, changes in (("slerp", {}), ("nuslerp", {"origin": "zero"})):
        turned = merged(models, name, t=0.3, compat="mergekit", **changes)["w"]
        torch.testing.assert_close(turned, math.sin(0.3 * math.pi / 2) * second)
        torch.testing.assert_close(merged(models, name, t=0.3, **changes)["w"], 0.3 * second)


def merged(models: ToyModels, name: str, **settings: Any) -> dict[str, torch.Tensor]:
    config: MethodConfig = METHOD_CONFIGS[name].model_validate(settings)  # type: ignore[assignment]
    method = build_method(config, models.experts)
    return {parameter: models.base(parameter) + method.delta(models, parameter) for parameter in models.names}


def of_vectors(*vectors: torch.Tensor, base: torch.Tensor | None = None) -> ToyModels:
    origin = torch.zeros_like(vectors[0]) if base is None else base
    return ToyModels({"w": origin}, {f"e{number}": {"w": vector} for number, vector in enumerate(vectors)})


def along(ends: Sequence[torch.Tensor], t: float) -> torch.Tensor:
    """SLERP of two vectors, as the books have it."""
    angle = torch.cosine_similarity(ends[0].flatten(), ends[1].flatten(), dim=0).acos()
    return (torch.sin((1 - t) * angle) * ends[0] + torch.sin(t * angle) * ends[1]) / angle.sin()


def total(shares: Iterable[float], vectors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The weighted sum."""
    return torch.stack([share * vector for share, vector in zip(shares, vectors, strict=True)]).sum(dim=0)


def as_rows(tensor: torch.Tensor, name: str, scope: str) -> torch.Tensor:
    """[out, in ...] of a matrix or convolution, or its columns as rows."""
    matrix = tensor.mT if KINDS[name].input_first else tensor.flatten(1)
    return matrix if scope == "row" else matrix.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", ["tensor", "row", "column"])
def test_nuslerp_is_the_arc_of_task_vectors_in_every_kind_of_tensor(scope: str, dtype: torch.dtype) -> None:
    models = every_kind(2, dtype=dtype)
    result = merged(models, "nuslerp", t=0.3, scope=scope)
    for name in models.names:
        kind = KINDS[name]
        pair = [models.task_vector(expert, name).double() for expert in models.experts]
        found = result[name].double() - models.base(name).double()
        if scope == "tensor" or kind.structure == "vector":
            if found.numel() > 1:
                torch.testing.assert_close(found, along(pair, 0.3), rtol=1e-4, atol=1e-5)
        elif len(kind.shape) != 3:
            sides = [as_rows(end, name, scope) for end in pair]
            for number, line in enumerate(as_rows(found, name, scope)):
                torch.testing.assert_close(line, along([side[number] for side in sides], 0.3), rtol=1e-4, atol=1e-5)


def test_a_stack_is_seen_matrix_by_matrix() -> None:
    models = every_kind(2, dtype=torch.float64)
    found = merged(models, "nuslerp", t=0.3, scope="row", origin="zero")["mlp.experts"]
    pair = [models.expert(expert, "mlp.experts") for expert in models.experts]
    for stack in range(3):
        for row in range(8):
            torch.testing.assert_close(found[stack, row], along([end[stack, row] for end in pair], 0.3))


def test_nuslerp_endpoints_swap_scale_and_unit_norm(ends: tuple[torch.Tensor, torch.Tensor]) -> None:
    first, second = ends
    for scope in ("tensor", "row", "column"):

        def point(one: torch.Tensor, two: torch.Tensor, t: float, scope: str = scope) -> torch.Tensor:
            return merged(of_vectors(one, two), "nuslerp", t=t, scope=scope)["w"]

        assert torch.equal(point(first, second, 0.0), first)
        assert torch.equal(point(first, second, 1.0), second)
        torch.testing.assert_close(point(first, second, 0.3), point(second, first, 0.7))
        torch.testing.assert_close(point(3 * first, 3 * second, 0.3), 3 * point(first, second, 0.3))
        torch.testing.assert_close(point(first, -first, 0.5), torch.zeros_like(first))
    rows = [torch.nn.functional.normalize(end, dim=-1) for end in ends]
    norms = torch.linalg.vector_norm(merged(of_vectors(*rows), "nuslerp", t=0.4, scope="row")["w"], dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_the_arc_bends_into_the_line_without_a_step() -> None:
    for sine in (1e-5, 2e-6, 1e-7):
        first, second = torch.tensor([1.0, 0.0]), torch.tensor([math.sqrt(1 - sine**2), sine])
        factors = arc(inner_products([first.double(), second.double()]), t=0.3, line=STRAIGHT)
        torch.testing.assert_close(factors, torch.tensor([0.7, 0.3], dtype=torch.float64), rtol=1e-9, atol=0)


def unit(vector: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector, dim=0)


def logarithm(point: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The tangent vector at a unit vector that leads to another one."""
    cosine = torch.dot(point, target).clamp(-1, 1)
    rest = target - cosine * point
    length = torch.linalg.vector_norm(rest).item()
    return rest * (cosine.acos() / length) if length > 1e-12 else rest


SHARES = {"e0": 0.5, "e1": 0.3, "e2": 0.2}


@pytest.fixture
def three() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [random(generator, 40) + 0.7 for _ in range(3)]


def test_the_karcher_mean_is_where_the_logarithms_cancel(three: list[torch.Tensor]) -> None:
    found = merged(of_vectors(*three), "karcher", weights=SHARES)["w"]
    pull = total(SHARES.values(), [logarithm(unit(found), unit(end)) for end in three])
    assert torch.linalg.vector_norm(pull).item() < 1e-9
    expected = total(SHARES.values(), [torch.linalg.vector_norm(end) for end in three])
    torch.testing.assert_close(torch.linalg.vector_norm(found), expected)
    # Nothing nearby has a smaller mean squared angle.
    generator = torch.Generator().manual_seed(0)

    def spread(point: torch.Tensor) -> float:
        angles = [torch.dot(unit(point), unit(end)).acos() for end in three]
        return sum(share * float(angle) ** 2 for share, angle in zip(SHARES.values(), angles, strict=True))

    assert all(spread(found) < spread(found + 0.01 * random(generator, 40)) for _ in range(20))


def test_multislerp_is_the_first_step_and_mergekits_is_none(three: list[torch.Tensor]) -> None:
    models = of_vectors(*three)
    weights = list(SHARES.values())
    radius = total(weights, [torch.linalg.vector_norm(end) for end in three])
    start = unit(total(weights, map(unit, three)))
    torch.testing.assert_close(merged(models, "multislerp", weights=SHARES, compat="mergekit")["w"], radius * start)
    step = total(weights, [logarithm(start, unit(end)) for end in three])
    length = torch.linalg.vector_norm(step)
    expected = radius * (length.cos() * start + length.sin() * step / length)
    torch.testing.assert_close(merged(models, "multislerp", weights=SHARES)["w"], expected)
    assert not torch.allclose(expected, radius * start, rtol=1e-6)
    nearer = merged(models, "karcher", weights=SHARES)["w"]
    assert torch.dist(nearer, expected) < 0.1 * torch.dist(nearer, radius * start)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_of_two_experts_the_mean_is_on_their_arc(name: str, t: float, three: list[torch.Tensor]) -> None:
    first, second = unit(three[0]), unit(three[1])
    found = merged(of_vectors(first, second), name, weights={"e0": 1 - t, "e1": t}, origin="zero")["w"]
    torch.testing.assert_close(found, along([first, second], t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_experts_without_a_direction(name: str, three: list[torch.Tensor]) -> None:
    first, second, zero = *three[:2], torch.zeros_like(three[0])
    shares = {"e0": 0.5, "e1": 0.3, "e2": 0.2}
    both = merged(of_vectors(first, second), name, weights={"e0": 0.5, "e1": 0.3})["w"]
    torch.testing.assert_close(merged(of_vectors(first, second, zero), name, weights=shares)["w"], 0.8 * both)
    assert torch.equal(merged(of_vectors(zero, zero, zero), name)["w"], zero)
    # Two opposite vectors have no mean on the sphere: that of the vectors themselves is taken.
    torch.testing.assert_close(merged(of_vectors(first, -first), name)["w"], zero)
    # The third is opposite to the mean of the three, and does not pull.
    torch.testing.assert_close(merged(of_vectors(first, first, -first), name)["w"], first)


def test_weights_that_leave_nobody_are_refused() -> None:
    for name in ("multislerp", "karcher"):
        config = METHOD_CONFIGS[name].model_validate({"weights": {"a": 0.0, "b": 0.0}})
        with pytest.raises(ConfigError, match=rf"{name}.weights add up to 0"):
            build_method(config, ["a", "b"])  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(2, 5),
    size=st.integers(2, 6),
    scale=st.floats(0.01, 100),
    steps=st.integers(0, 20),
)
def test_means_commute_with_order_scale_and_rotation(
    seed: int, count: int, size: int, scale: float, steps: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = [unit(random(generator, size).abs()) for _ in range(count)]  # no two more than a right angle apart
    shares = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
    weights = tuple((shares / shares.sum()).tolist())

    def mean(vectors: list[torch.Tensor], weights: tuple[float, ...]) -> torch.Tensor:
        factors = spherical_mean(inner_products(vectors), weights=weights, steps=steps)
        return total(factors.tolist(), vectors)

    found = mean(points, weights)
    assert torch.linalg.vector_norm(found).item() == pytest.approx(1)
    torch.testing.assert_close(mean(points[::-1], weights[::-1]), found, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mean([scale * point for point in points], weights), scale * found, rtol=1e-6, atol=1e-6)
    rotation, _ = torch.linalg.qr(random(generator, size, size))
    torch.testing.assert_close(
        mean([rotation @ point for point in points], weights), rotation @ found, rtol=1e-6, atol=1e-6
    )
