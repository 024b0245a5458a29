"""Names of directions: what "experts" stands for, methods twice, and names that would clash."""

from __future__ import annotations

import pytest

from optmerge.config.methods import (
    LINEAR_METHODS,
    METHOD_CONFIGS,
    STATISTICS_METHODS,
    DareConfig,
    LinearConfig,
    MethodConfig,
    TaskArithmeticConfig,
    TiesConfig,
    TiesSplitConfig,
    TsvMConfig,
)
from optmerge.errors import ConfigError
from optmerge.merging.directions import expand_directions, known_directions
from optmerge.merging.methods import build_method
from optmerge.merging.recipe import Direction

EXPERTS = ["a", "b"]


def names(directions: tuple[Direction, ...]) -> list[str]:
    return [direction.name for direction in directions]


@pytest.mark.parametrize("method", [None, TaskArithmeticConfig()])
def test_experts_are_task_vectors(method: MethodConfig | None) -> None:
    ties = TiesConfig()
    found = expand_directions([ties, "experts"], EXPERTS, method)
    assert found == (Direction("ties", "method", ties), Direction("a", "expert"), Direction("b", "expert"))


@pytest.mark.parametrize("method", [DareConfig(drop=0.9), TiesSplitConfig(), TsvMConfig()])
def test_experts_are_their_parts_of_a_method(method: MethodConfig) -> None:
    found = expand_directions(["experts"], EXPERTS, method)
    assert found == tuple(Direction(f"{method.name}:{name}", "part", method, name) for name in EXPERTS)


def test_a_method_twice_is_told_apart_by_its_settings() -> None:
    entries = [
        TiesConfig(density=0.5),
        TiesConfig(scope="tensor", density=0.3),
        TiesConfig(),
        LinearConfig(),
        LinearConfig(weights={"a": 2}),
    ]
    assert names(expand_directions(entries, EXPERTS)) == [
        "ties",
        "ties[density=0.3,scope=tensor]",
        "ties[density=0.2]",
        "linear",
        'linear[weights={"a": 2.0}]',
    ]


@pytest.mark.parametrize(
    "twice", [["experts", "experts"], [TiesConfig(), TiesConfig()], [TiesConfig(density=0.5), *[TiesConfig()] * 2]]
)
def test_the_same_direction_twice_is_refused(twice: list[str | MethodConfig]) -> None:
    with pytest.raises(ConfigError, match="may stand once"):
        expand_directions(twice, EXPERTS)


def test_an_expert_called_like_a_method_is_refused() -> None:
    for wrong in (
        lambda: expand_directions(["experts", TiesConfig()], ["ties"]),
        lambda: known_directions(expand_directions(["experts"], ["ties"]), [TiesConfig()], ["ties"]),
    ):
        with pytest.raises(ConfigError, match=r"experts\.ties: .* Give the expert another name"):
            wrong()


def test_known_are_experts_first_then_what_is_searched_then_baselines() -> None:
    half, dare = TiesConfig(density=0.5), DareConfig()
    searched = expand_directions(["experts", half], EXPERTS, dare)
    known = known_directions(searched, [half, TiesConfig(density=0.3), LinearConfig()], EXPERTS)
    assert names(known) == ["a", "b", "dare:a", "dare:b", "ties", "ties[density=0.3]", "linear"]
    assert set(searched) <= set(known)


def test_the_lists_of_methods_agree_with_the_methods() -> None:
    built = {name: build_method(config(), EXPERTS) for name, config in METHOD_CONFIGS.items()}  # type: ignore[arg-type]
    assert [name for name, method in built.items() if method.needs] == list(STATISTICS_METHODS)
    assert all(built[name].linear for name in LINEAR_METHODS)
