"""Spherical interpolation against its closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from optmerge.config.methods import SlerpConfig
from optmerge.errors import ConfigError
from optmerge.merging.methods import build_method
from optmerge.merging.methods.sphere import COLLINEAR, arc
from tests.merging.methods.toy import ToyModels, random


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


def test_other_numbers_of_experts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there are 3 experts \(a, b, c\).*two experts, or one"):
        build_method(SlerpConfig(), ["a", "b", "c"])
