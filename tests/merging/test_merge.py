"""A recipe bound to its models: what it leaves open, and how it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import TiesConfig
from optmerge.errors import RecipeError
from optmerge.merging.coefficients import Static
from optmerge.merging.merge import Merge, completed, cut, rows_of_parameters
from optmerge.merging.method_deltas import MethodDeltas
from optmerge.merging.recipe import Direction, Group, ModelEntry, Recipe
from optmerge.merging.sources import LowRank, Segment, Source
from optmerge.merging.writing import Workspace, write_merge
from optmerge.models.family import Family, open_family
from tests.tiny import save_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("llama")
    tiny = save_family("llama", folder, dtype=torch.bfloat16)
    return open_family(str(tiny.base), {name: str(path) for name, path in tiny.experts.items()}, relative_to=folder)


def recipe(groups: tuple[Group, ...], table: object, **changes: object) -> Recipe:
    fields: dict[str, object] = {
        "base": ModelEntry("base"),
        "experts": {"one": ModelEntry("one"), "two": ModelEntry("two", "stated")},
        "directions": (Direction("one", "expert"), Direction("two", "expert")),
        "groups": groups,
        "coefficient_fn": Static(np.array(table, dtype=float)),
    }
    return Recipe(**{**fields, **changes})  # type: ignore[arg-type]


STAR = Group("model", ("*",), None, "model")


def test_star_is_everything_that_no_other_group_has(family: Family) -> None:
    one = Group("embedding", family.disk_names("model.embed_tokens.weight"))
    rows = dict(rows_of_parameters(recipe((STAR, one), [[1, 2], [3, 4]]), family).first)
    assert rows.pop("model.embed_tokens.weight") == 1
    assert set(rows.values()) == {0}
    assert len(rows) == len(family.parameters) - 1


def test_completed_fills_in_what_the_models_know(family: Family) -> None:
    made = completed(recipe((STAR,), [[1, 2]], heads="auto", dtype="auto"), family)
    assert made.groups[0].tensors == tuple(d for name in family.parameters for d in family.disk_names(name))
    assert (made.heads, made.dtype) == ("merged", "bfloat16")
    assert made.base.sha256 == family.base.sha256()
    assert made.experts["one"].sha256 == family.experts["one"].sha256()
    assert made.experts["two"].sha256 == "stated"
    assert completed(made, family).to_yaml() == made.to_yaml()


def test_what_does_not_fit_is_told(family: Family) -> None:
    with pytest.raises(RecipeError, match=r"names the tensor model\.embed_token\.weight.*Did you mean 'model\.embed"):
        Merge(recipe((Group("g", ("model.embed_token.weight",)),), [[1, 2]]), family)
    with pytest.raises(RecipeError, match=r"no coefficient for 20 of the model's 21 parameters"):
        Merge(recipe((Group("g", ("model.embed_tokens.weight",)),), [[1, 2]]), family)


def test_a_direction_that_is_nowhere_used_is_not_asked_for(family: Family) -> None:
    (segment,) = Merge(recipe((STAR,), [[0.0, 0.5]]), family).segments("model.norm.weight")
    assert len(segment.sources) == 1
    nothing = Merge(recipe((STAR,), [[0.0, 0.0]]), family)
    (segment,) = nothing.segments("model.norm.weight")
    out = torch.empty(segment.base.shape, dtype=torch.bfloat16)
    nothing.write(out, "model.norm.weight", segment)
    assert torch.equal(out, family.read("base", "model.norm.weight"))


def test_a_method_is_asked_for_where_it_has_a_coefficient(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may have a direction for every layer's settings; each is made for that layer's parameters alone."""
    asked: list[tuple[str, str]] = []
    made = MethodDeltas.delta

    def delta(self: MethodDeltas, direction: Direction, parameter: str) -> torch.Tensor | None:
        asked.append((direction.name, parameter))
        return made(self, direction, parameter)

    monkeypatch.setattr(MethodDeltas, "delta", delta)
    directions = tuple(Direction(f"ties-{n}", "method", TiesConfig(density=n / 4, scope="tensor")) for n in (1, 2))
    names = ("model.norm.weight", "model.embed_tokens.weight")
    groups = (Group("norm", family.disk_names(names[0])), STAR)
    both = Merge(recipe(groups, [[0.5, 0], [0, 1]], directions=directions), family)
    alone = Merge(recipe((STAR,), [[0.5]], directions=directions[:1]), family)
    (mixed,), (plain,) = both.segments(names[0]), alone.segments(names[0])
    assert asked == [("ties-1", names[0])] * 2
    ours, wanted = torch.empty_like(mixed.base), torch.empty_like(mixed.base)
    both.write(ours, names[0], mixed)
    alone.write(wanted, names[0], plain)
    assert torch.equal(ours, wanted)
    assert not torch.equal(ours, mixed.base)
    both.segments(names[1])
    assert asked[2:] == [("ties-2", names[1])]


def test_factors_that_are_copied_are_multiplied_out_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    base, made = torch.zeros(6, 4), []

    def exact() -> torch.Tensor:
        made.append(1)
        return torch.ones(6, 4)

    low = LowRank(torch.ones(6, 1), torch.ones(1, 4), 1.0, exact)
    merge = Merge(recipe((STAR,), [[1.0, 1.0]]), family)
    monkeypatch.setattr(merge._deltas, "segments", lambda name, unused: [Segment((), base, (None, low))])
    (segment,) = merge.segments("model.norm.weight")
    for part in cut(segment, 8):
        out = torch.empty(part.base.shape)
        merge.write(out, "model.norm.weight", part)
        assert torch.equal(out, torch.ones(2, 4))
    assert len(made) == 1


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(1, 60))
def test_parts_follow_one_another(shape: list[int], most: int) -> None:
    values = torch.arange(float(torch.Size(shape).numel())).view(shape)
    segment = Segment((), values, (Source(values + 1, absolute=True), None))
    parts = list(cut(segment, most))
    assert all(0 < part.base.numel() <= most for part in parts)
    assert all(part.sources[0].tensor.shape == part.base.shape for part in parts)  # type: ignore[union-attr]
    for pick in (lambda part: part.base, lambda part: part.sources[0].tensor - 1):
        together = [pick(part).flatten() for part in parts]
        assert torch.equal(torch.cat(together) if together else torch.empty(0), values.flatten())


def test_low_rank_parts_are_whole_rows_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from optmerge.merging import merge, writing

    monkeypatch.setattr(merge, "LOW_RANK_CHUNK", 64)
    monkeypatch.setattr(writing, "LOW_RANK_CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    base, b, a = (torch.randn(shape, generator=generator) for shape in ((30, 20), (30, 3), (3, 20)))
    segment = Segment((), base, (LowRank(b, a, 0.5, lambda: base + 0.5 * b @ a),))
    workspace = Workspace(torch.device("cpu"), torch.float32)
    whole = torch.empty(30, 20)
    write_merge(whole, segment, [0.3], workspace)
    parts = list(cut(segment, 7))
    assert [part.base.shape[0] for part in parts] == [3] * 10
    for index, part in enumerate(parts):
        out = torch.empty(part.base.shape)
        write_merge(out, part, [0.3], workspace)
        assert torch.equal(out, whole[3 * index : 3 * index + 3])
