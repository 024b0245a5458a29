"""What passes from one stage of a schedule to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from optmerge.config.spaces import ChunksConfig, RuleConfig, SpaceConfig
from optmerge.records import Candidate, Record
from optmerge.runner.stages import chosen_examples, look_at, measured_curvature, prolonged
from optmerge.space.build import build_space
from optmerge.space.space import SearchSpace


@dataclass(frozen=True)
class Role:
    kind: str
    layer: int | None = None
    part: str | None = None


@dataclass(frozen=True)
class Shape:
    shape: tuple[int, ...]
    input_first: bool = False

    @property
    def numel(self) -> int:
        return int(np.prod(self.shape))


ROLES = {
    "embed.weight": Role("embedding"),
    "layers.0.attn.weight": Role("attention", 0),
    "layers.0.norm.weight": Role("norm", 0),
    "layers.0.mlp.weight": Role("mlp", 0),
    "layers.1.attn.weight": Role("attention", 1),
    "layers.1.norm.weight": Role("norm", 1),
    "layers.1.mlp.weight": Role("mlp", 1),
    "norm.weight": Role("final-norm"),
}
SHAPES = {name: Shape((4,) if "norm" in name else (4, 3)) for name in ROLES}
COARSE_TO_FINE = ("model-wise", "task-wise", "layer-wise", "layer-kind-wise", "tensor-wise")
RULES = [RuleConfig(match="*.norm.weight", bounds=(-2.0, 4.0)), RuleConfig(match="embedding", freeze=0.0)]


def space(granularity: str, **settings: object) -> SearchSpace:
    config = SpaceConfig.model_validate({"granularity": granularity, **settings})
    return build_space(config, ROLES, ["a", "b"], shapes=SHAPES)


def of_parameters(table: np.ndarray, space: SearchSpace) -> dict[str, list[list[float]]]:
    """Every parameter's distinct coefficients, whatever its group."""
    return {
        name: np.unique(table[at], axis=0).tolist()
        for group, at in zip(space.groups, space.rows, strict=True)
        for name in group.parameters
    }


@pytest.mark.parametrize(
    ("coarse", "fine", "normalise"),
    [
        (coarse, fine, normalise)
        for place, coarse in enumerate(COARSE_TO_FINE)
        for fine in (*COARSE_TO_FINE[place:], "column-wise", "chunk-wise")
        for normalise in ("none", "sum")
        if (coarse, normalise) != ("model-wise", "sum")  # nothing to search
    ],
)
def test_coefficients_are_the_same_in_finer_groups(coarse: str, fine: str, normalise: str) -> None:
    settings: dict[str, object] = {"rules": RULES, "normalise": normalise}
    before = space(coarse, **settings)
    after = space(fine, **settings, **({"chunks": ChunksConfig(budget=2.0)} if fine == "chunk-wise" else {}))
    vector = np.random.Generator(np.random.PCG64(1)).uniform(0.2, 0.9, before.dimension)
    table = before.decode(vector)
    wide = prolonged(table, before, after)
    assert of_parameters(wide, after) == of_parameters(table, before)
    started = after.started_at(wide)
    again = started.decode(started.encode(wide))
    if normalise == "none":
        assert np.array_equal(again, wide), "to the last bit"
    else:
        assert np.allclose(again, wide, rtol=0.0, atol=1e-15)


def test_tables_over_other_directions_are_prolonged_too() -> None:
    before, after = space("task-wise"), space("tensor-wise")
    assert prolonged(np.array([[1.0, 2.0, 3.0, 4.0]]), before, after).shape == (len(ROLES), 4)
    table = np.ones((after.num_rows, 2))
    assert prolonged(table, after, space("tensor-wise")) is table


def test_larger_samples_hold_the_smaller_ones() -> None:
    sizes = {"a": 40, "b": 10}
    few, more = (chosen_examples(sizes, count, seed=3) for count in (6, 20))
    assert few is not None
    assert more is not None
    for task in sizes:
        assert set(few[task]) < set(more[task])
        assert list(few[task]) == sorted(few[task])
    assert [len(few["a"]), len(more["a"]), len(more["b"])] == [6, 20, 10]
    assert few == chosen_examples(sizes, 6, seed=3)
    assert few != chosen_examples(sizes, 6, seed=4)
    assert chosen_examples(sizes, 40, seed=3) is None
    assert chosen_examples(sizes, None, seed=3) is None


def test_a_driver_that_knows_of_some_examples_is_judged_on_them() -> None:
    chosen = {"a": (3, 8, 9), "b": (0, 5)}
    whole = Candidate(np.zeros(2))
    assert look_at(whole, None) is whole
    assert look_at(whole, chosen).examples == chosen
    part = Candidate(np.zeros(2), examples={"a": (0, 2), "b": (1,)})
    assert look_at(part, chosen).examples == {"a": (3, 9), "b": (5,)}


def record(number: int, gradient: list[float] | None, **changes: object) -> Record:
    values = {"id": number, "phase": "search", "driver": "adam", "split": "fit", "value": 1.0, **changes}
    return Record(**values, gradient=None if gradient is None else np.array(gradient))  # type: ignore[arg-type]


def test_curvature_is_the_mean_squared_gradient_of_the_latest_stage_with_these_variables() -> None:
    tasks, layers = space("task-wise"), space("layer-wise")
    records = [
        record(0, [1.0, 2.0]),
        record(1, [3.0, 0.0]),
        record(2, [9.0, 9.0], error="RuntimeError: made to fail"),
        record(3, [9.0, 9.0], phase="select", split="select"),
        record(4, None, stage=1),
    ]
    found = measured_curvature(records, [tasks, tasks])
    assert found is not None
    assert found.tolist() == [5.0, 2.0]
    assert measured_curvature(records, [tasks, tasks, tasks]) is not None, "a stage without gradients lies between"
    assert measured_curvature(records, [tasks, layers]) is None, "of other variables"
    assert measured_curvature(records, [tasks]) is None
