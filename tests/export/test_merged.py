"""Disk tensors as runs of merged rows: equal to the whole ones, whatever the chunks and the layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from optmerge.export.folders import plan_base
from optmerge.export.merged import TensorSink, stream_merged
from optmerge.export.safetensors_writer import ShardedWriter
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import Engine
from optmerge.merging.merge import Merge
from optmerge.merging.recipe import Recipe
from optmerge.merging.sources import Segment
from optmerge.models.family import Family
from optmerge.models.resident import ResidentModel
from tests.export.families import open_with_adapter, opened, random_recipe, recipe_of
from tests.export.oracle import tensors_on_disk

GetFamily = Callable[[str], Family]


class Watched(Merge):
    """A merge that remembers the size of everything it is asked for."""

    def __init__(self, recipe: Recipe, family: Family) -> None:
        super().__init__(recipe, family)
        self.sizes: list[int] = []

    def write(self, out: torch.Tensor, parameter: str, segment: object) -> None:
        self.sizes.append(out.numel())
        super().write(out, parameter, segment)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "gpt2", "mixtral", "vit", "bert-merged", "bert"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streamed_in_small_chunks_equals_merged_whole(kind: str, dtype: str, family: GetFamily, tmp_path: Path) -> None:
    models = family(kind)
    recipe = random_recipe(models, dtype=dtype)
    plan = plan_base(recipe, models)
    merge = Watched(recipe, models)
    with ShardedWriter(tmp_path, plan.specs, buffer_bytes=128) as writer:
        plan.stream(merge, writer)
    written = load_file(tmp_path / "model.safetensors")
    expected = tensors_on_disk(recipe, models)
    assert expected
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert max(merge.sizes) <= 128 // getattr(torch, dtype).itemsize  # no layout here needs a whole parameter


def test_a_one_hot_recipe_writes_the_experts_bytes(family: GetFamily, tmp_path: Path) -> None:
    models = family("mixtral")
    recipe = random_recipe(models)
    table = recipe.coefficients.copy()
    table[:] = [0.0, 1.0]
    merge = Merge(random_recipe(models, coefficient_fn=type(recipe.coefficient_fn)(table)), models)
    plan = plan_base(recipe, models)
    sink = TensorSink(plan.specs)
    plan.stream(merge, sink)
    two = models.experts["two"]
    assert all(torch.equal(tensor, two.read(name)) for name, tensor in sink.tensors.items())


def test_a_layout_that_is_no_run_of_rows_is_merged_whole(family: GetFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tensors when every disk tensor is taken for a permuted one."""
    from optmerge.export import merged

    models = family("mixtral")
    recipe = random_recipe(models, dtype="bfloat16")
    monkeypatch.setattr(merged, "_runs", lambda *_: None)
    sink = TensorSink(plan_base(recipe, models).specs)
    stream_merged(Merge(recipe, models), "base", sink, torch.bfloat16)
    assert all(torch.equal(sink.tensors[name], tensor) for name, tensor in tensors_on_disk(recipe, models).items())


def test_whole_methods_and_experts_of_another_type(tmp_path: Path) -> None:
    """A direction that is a method is computed on demand, and nothing is kept of it on disk."""
    from optmerge.models.cache import cache_dir

    models = opened("llama", tmp_path, dtype=torch.float16)
    recipe = random_recipe(models, method=True)
    before = set(cache_dir().rglob("directions/*"))
    plan = plan_base(recipe, models)
    sink = TensorSink(plan.specs)
    plan.stream(Merge(recipe, models), sink)
    alone = random_recipe(models, method=False)
    without = tensors_on_disk(
        random_recipe(models, coefficient_fn=type(alone.coefficient_fn)(recipe.coefficients[:, :2])), models
    )
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(sink.tensors[name], without[name])
    assert set(cache_dir().rglob("directions/*")) == before


@pytest.mark.parametrize(
    ("inner", "outer", "offset"),
    [
        (((0, 2), (0, 3)), ((0, 4), (0, 3)), 0),
        (((2, 4), (0, 3)), ((0, 4), (0, 3)), 6),
        (((1, 2), (1, 3)), ((0, 4), (0, 3)), 4),
        (((0, 2), (0, 2)), ((0, 4), (0, 3)), None),
        (((5, 6), (2, 4), (0, 3)), ((4, 8), (0, 4), (0, 3)), 18),
        (((5, 7), (2, 4), (0, 3)), ((4, 8), (0, 4), (0, 3)), None),
        (((0, 5),), ((0, 4),), None),
        ((), (), 0),
    ],
)
def test_where_a_box_starts_in_another(
    inner: tuple[tuple[int, int], ...], outer: tuple[tuple[int, int], ...], offset: int | None
) -> None:
    from optmerge.export.merged import _offset

    assert _offset(inner, outer) == offset
    if offset is not None:
        values = torch.arange(torch.Size([hi - lo for lo, hi in outer]).numel()).view([hi - lo for lo, hi in outer])
        box = values[tuple(slice(lo - start, hi - start) for (lo, hi), (start, _) in zip(inner, outer, strict=True))]
        assert box.flatten().tolist() == list(range(offset, offset + box.numel()))


@pytest.mark.parametrize("hot", [False, True])
def test_an_adapter_is_written_as_the_engine_applies_it(hot: bool, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    models = open_with_adapter("llama", tmp_path)
    table = np.tile([0.0, 1.0] if hot else [0.3, 0.6], (len(models.parameters), 1))
    recipe = recipe_of(models, table, dtype="bfloat16")
    resident = ResidentModel(models, device=torch.device("cpu"), dtype=torch.bfloat16)
    engine = Engine(resident.parameters, Deltas(models, recipe.directions, cache=None).segments, rows_of(models))
    engine.apply(table)
    plan = plan_base(recipe, models)
    with ShardedWriter(tmp_path, plan.specs, buffer_bytes=64) as writer:
        plan.stream(Merge(recipe, models), writer)
    written = load_file(tmp_path / "model.safetensors")
    for name, parameter in resident.parameters.items():
        (disk,) = models.disk_names(name)
        assert torch.equal(written[disk], parameter), name
        if hot:
            assert torch.equal(written[disk], models.experts["two"].read(disk).bfloat16())


def rows_of(family: Family) -> dict[str, int]:
    return {name: row for row, name in enumerate(family.parameters)}


def test_a_box_is_tiled_by_its_segments_in_order() -> None:
    from optmerge.export.merged import _tiles

    def segment(*index: slice) -> Segment:
        return Segment(index, torch.empty(4, 3)[index], ())

    rows = {((lo, lo + 2), (0, 3)): segment(slice(lo, lo + 2)) for lo in (2, 0)}
    assert _tiles(rows, ((0, 4), (0, 3))) == [(0, rows[(0, 2), (0, 3)]), (6, rows[(2, 4), (0, 3)])]
    assert _tiles(rows, ((2, 4), (0, 3))) == [(0, rows[(2, 4), (0, 3)])]
    assert _tiles(rows, ((0, 3), (0, 3))) is None  # a segment reaches beyond it
    columns = {((0, 4), (lo, lo + 1)): segment(slice(None), slice(lo, lo + 1)) for lo in range(3)}
    assert _tiles(columns, ((0, 4), (0, 3))) is None
    del rows[(0, 2), (0, 3)]
    assert _tiles(rows, ((0, 4), (0, 3))) is None  # a gap
