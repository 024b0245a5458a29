"""Directions as the engine sees them: segments of every architecture, whole methods and parts, their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from optmerge.config.methods import (
    METHOD_CONFIGS,
    DareConfig,
    DrmConfig,
    IsoCConfig,
    LinearConfig,
    MethodConfig,
    Need,
    RegMeanConfig,
    StarConfig,
    TiesConfig,
    TiesSplitConfig,
    TsvMConfig,
    WidenConfig,
)
from optmerge.errors import RecipeError
from optmerge.merging.coefficients import Static
from optmerge.merging.deltas import Deltas
from optmerge.merging.directions import expand_directions
from optmerge.merging.engine import Engine
from optmerge.merging.methods import build_method
from optmerge.merging.models_view import FamilyModels
from optmerge.merging.recipe import Direction, Group, ModelEntry, Recipe
from optmerge.merging.sources import Source
from optmerge.models.family import Family, open_family
from tests.merging.methods.toy import ENTRYWISE
from tests.tiny import make_model, save_family

SHORT = {"doge": {"steps": 3, "others": "mean", "embeddings": "mean"}, "wudi": {"steps": 3}, "wudi-2": {"steps": 3}}
"""Few steps of those that optimise; and what DOGE leaves at the base has a delta too."""
METHODS: list[MethodConfig] = [
    config.model_validate(SHORT.get(name, {}))  # type: ignore[misc]
    for name, config in METHOD_CONFIGS.items()
]
PARTS: list[MethodConfig] = [
    DareConfig(drop=0.4, seed=3),
    TiesSplitConfig(density=0.4),
    TsvMConfig(),
    WidenConfig(),
    StarConfig(),
    DrmConfig(),
]


class Grams:
    """Made-up statistics; Gram matrices of every matrix that is in a linear layer."""

    def __init__(self, family: Family, key: str = "grams") -> None:
        self.family = family
        self._key = key

    def key(self, needs: Collection[Need]) -> str:
        return f"{self._key} {sorted(needs)}"

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        generator = torch.Generator().manual_seed(list(self.family.experts).index(expert) + len(name))
        if need == "logit-distance":
            return torch.rand((), generator=generator)
        parameter = self.family.parameters[name]
        if need in ENTRYWISE:
            return torch.randn(parameter.shape, generator=generator).square()
        if len(parameter.shape) != 2 or parameter.role.kind == "embedding":
            return None
        size = parameter.shape[0 if parameter.input_first == (need != "output-grams") else 1]
        inputs = torch.randn(40, size, generator=generator)
        return inputs.mT @ inputs / 40

    def layer_by_layer(self) -> Grams:
        return self

    def stages(self) -> Iterator[tuple[str, ...]]:
        for name in self.family.parameters:
            yield (name,)

    def settle(self, name: str, delta: torch.Tensor) -> None:
        assert delta.shape == self.family.parameters[name].shape


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    opened: dict[str, Family] = {}

    def family(kind: str) -> Family:
        if kind not in opened:
            made = save_family(kind, tmp_path_factory.mktemp(kind), scale=0.3)
            experts = {name: str(folder) for name, folder in made.experts.items()}
            opened[kind] = open_family(str(made.base), experts, relative_to=Path())
        return opened[kind]

    return family


def merged(family: Family, deltas: Deltas, row: Sequence[float]) -> dict[str, torch.Tensor]:
    """Every parameter as the engine writes it at one row of coefficients."""
    parameters = {
        name: nn.Parameter(torch.full(each.shape, torch.nan), requires_grad=False)
        for name, each in family.parameters.items()
    }
    Engine(parameters, deltas.segments, dict.fromkeys(parameters, 0)).apply(np.array([row]))
    return {name: parameter.data for name, parameter in parameters.items()}


def plain(base: torch.Tensor, deltas: Sequence[torch.Tensor], row: Sequence[float]) -> torch.Tensor:
    """The contract: acc = sum_k fl(c_k delta_k) in order, then base + acc."""
    total = torch.zeros_like(base)
    for coefficient, delta in zip(row, deltas, strict=True):
        if coefficient:
            total = total + torch.tensor(coefficient) * delta
    return base + total


@pytest.mark.parametrize("kind", ["bert", "llama-tied", "gpt2", "mixtral", "qwen2"])
def test_segments_tile_each_parameter_with_views(tiny: Callable[[str], Family], kind: str) -> None:
    family = tiny(kind)
    deltas = Deltas(family, expand_directions(["experts"], list(family.experts)), cache=None)
    boxes = 0
    for name, parameter in family.parameters.items():
        covered = torch.zeros(parameter.shape, dtype=torch.int64)
        for segment in deltas.segments(name):
            covered[segment.index] += 1
            boxes += bool(segment.index)
            assert not segment.temporary, name
            for expert, source in zip(family.experts, segment.sources, strict=True):
                assert isinstance(source, Source)
                assert source.absolute
                assert source.tensor.data_ptr() == family.read_box(expert, name, segment.index).data_ptr()
                assert torch.equal(source.tensor, family.read(expert, name)[segment.index])
            assert torch.equal(segment.base, family.read("base", name)[segment.index])
        assert bool((covered == 1).all()), name
    assert (boxes > 0) == (kind == "mixtral")  # fused experts are read where they lie, not put together


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "mixtral"])
def test_every_method_is_base_plus_scale_times_its_delta(
    tiny: Callable[[str], Family], tmp_path: Path, kind: str, cached: bool
) -> None:
    family = tiny(kind)
    statistics = Grams(family)
    directions = expand_directions(METHODS, list(family.experts))
    deltas = Deltas(family, directions, cache=tmp_path if cached else None, statistics=statistics)
    deltas.prepare()
    models = FamilyModels(family, statistics)
    for column, config in enumerate(METHODS):
        method = build_method(config, list(family.experts))
        method.prepare(models)
        row = [0.0] * len(METHODS)
        row[column] = 0.7
        found = merged(family, deltas, row)
        moved = 0
        for name in family.parameters:
            base = family.read("base", name)
            expected = plain(base, [method.delta(models, name)], [0.7])
            assert torch.equal(found[name], expected), (config.name, name)
            moved += not torch.equal(expected, base)
        # Where random task vectors point apart, Model Stock stays at the base.
        assert moved > len(family.parameters) // (4 if config.name == "model_stock" else 2), config.name


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("config", PARTS, ids=lambda config: config.name)
def test_parts_are_scaled_expert_by_expert(
    tiny: Callable[[str], Family], tmp_path: Path, config: MethodConfig, cached: bool
) -> None:
    family = tiny("bert")
    directions = expand_directions(["experts"], list(family.experts), config)
    deltas = Deltas(family, directions, cache=tmp_path if cached else None)
    deltas.prepare()
    models = FamilyModels(family)
    method = build_method(config, list(family.experts))
    row = [0.8, -0.3]
    found = merged(family, deltas, row)
    ones = merged(family, deltas, [1.0, 1.0])
    for name in family.parameters:
        base, parts = family.read("base", name), method.expert_deltas(models, name)
        assert torch.equal(found[name], plain(base, parts, row)), name
        torch.testing.assert_close(ones[name], base + method.delta(models, name))
    if cached:
        assert len(list(tmp_path.iterdir())) == 1  # the parts of one method lie together


def test_what_another_process_has_made_is_not_made_again(
    tiny: Callable[[str], Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of threads, on which the last bits of a decomposition depend."""
    family = tiny("bert")
    directions = expand_directions(["experts", IsoCConfig()], list(family.experts))
    first = Deltas(family, directions, cache=tmp_path / "first")
    first.prepare()
    assert set(first.folders) == {"iso-c"}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    second = Deltas(family, directions, cache=tmp_path / "second", made=first.folders)
    assert not second.statistics_wanted
    second.prepare()
    assert second.folders == first.folders
    assert not (tmp_path / "second").exists()
    row = [0.3, -0.2, 1.0]
    assert all(
        torch.equal(value, merged(family, first, row)[name]) for name, value in merged(family, second, row).items()
    )


def test_methods_stand_beside_task_vectors_in_any_order(tiny: Callable[[str], Family], tmp_path: Path) -> None:
    family = tiny("llama-tied")
    experts = list(family.experts)
    config = TiesConfig()
    deltas = Deltas(family, expand_directions([config, "experts", IsoCConfig()], experts), cache=tmp_path)
    deltas.prepare()
    models = FamilyModels(family)
    ties, iso = (build_method(each, experts) for each in (config, IsoCConfig()))
    row = [0.4, 0.3, -0.2, 1.1]
    found = merged(family, deltas, row)
    for name in family.parameters:
        base = family.read("base", name)
        each = [
            ties.delta(models, name),
            *(family.read(expert, name) - base for expert in experts),
            iso.delta(models, name),
        ]
        assert torch.equal(found[name], plain(base, each, row)), name


def test_the_cache_is_by_content(
    tiny: Callable[[str], Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = tiny("bert")
    told: list[tuple[str, int, int | None]] = []

    def prepare(config: MethodConfig, grams: str = "grams") -> Deltas:
        told.clear()
        deltas = Deltas(family, [Direction("x", "method", config)], cache=tmp_path, statistics=Grams(family, grams))
        deltas.prepare(lambda *what: told.append(what))
        return deltas

    size = len(family.parameters)
    prepare(RegMeanConfig())
    assert told == [("regmean", done + 1, size) for done in range(size)]
    prepare(RegMeanConfig())
    assert told == []
    for changed in (lambda: prepare(RegMeanConfig(shrink=0.5)), lambda: prepare(RegMeanConfig(), "others")):
        changed()
        assert told[-1:] == [("regmean", size, size)]
    prepare(IsoCConfig())
    prepare(IsoCConfig(), "others")
    assert told == []  # what needs no statistics does not depend on them
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    prepare(IsoCConfig())
    assert told != []


def test_statistics_are_wanted_until_the_delta_is_kept(tiny: Callable[[str], Family], tmp_path: Path) -> None:
    family = tiny("bert")
    plain_methods = expand_directions(["experts", TiesConfig()], list(family.experts))
    assert not Deltas(family, plain_methods, cache=tmp_path, statistics=Grams(family)).statistics_wanted
    directions = expand_directions([RegMeanConfig()], list(family.experts))
    deltas = Deltas(family, directions, cache=tmp_path, statistics=Grams(family))
    assert deltas.statistics_wanted
    deltas.prepare()
    assert not Deltas(family, directions, cache=tmp_path, statistics=Grams(family)).statistics_wanted


def test_without_statistics_and_file_it_says_what_to_do(tiny: Callable[[str], Family], tmp_path: Path) -> None:
    family = tiny("bert")
    directions = expand_directions([RegMeanConfig()], list(family.experts))
    with pytest.raises(RecipeError, match=r"regmean depends on calibration data \(grams\).*in its run's folder"):
        Deltas(family, directions, cache=tmp_path).prepare()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="regmean depends on calibration data"):
        Deltas(family, directions, cache=None).segments(next(iter(family.parameters)))


def kept(family: Family, folder: Path, cache: Path, coefficients: Sequence[float]) -> Recipe:
    """A recipe over TIES, RegMean and another RegMean, with what it needs in its folder."""
    entries: list[MethodConfig] = [TiesConfig(), RegMeanConfig(), RegMeanConfig(shrink=0.5)]
    directions = expand_directions(entries, list(family.experts))
    deltas = Deltas(family, directions, cache=cache, statistics=Grams(family))
    deltas.prepare()
    recipe = Recipe(
        base=ModelEntry(family.base.reference),
        experts={name: ModelEntry(each.reference) for name, each in family.experts.items()},
        directions=directions,
        groups=(Group("model", ("*",), None, "model"),),
        coefficient_fn=Static(np.array([coefficients])),
        heads=family.heads,
    )
    made = deltas.kept_in(recipe, folder)
    made.save(folder / "recipe.yaml")
    assert deltas.kept_in(recipe, folder).directions == made.directions  # what is there already is used
    return made


def test_a_recipe_keeps_what_depends_on_data_beside_it(tiny: Callable[[str], Family], tmp_path: Path) -> None:
    family = tiny("bert")
    run = tmp_path / "run"
    made = kept(family, run, tmp_path / "cache", [0.4, 0.9, 0.0])
    assert [path.name for path in (run / "directions").iterdir()] == ["regmean"]
    assert [direction.stored for direction in made.directions] == [None, str(run / "directions" / "regmean"), None]
    assert "stored: directions/regmean\n" in (run / "recipe.yaml").read_text()

    moved = run.rename(tmp_path / "moved")  # the folder means the same anywhere
    recipe = Recipe.load(moved / "recipe.yaml")
    assert recipe.directions[1].stored == str(moved / "directions" / "regmean")
    for cache in (None, tmp_path / "other"):
        used = [recipe.directions[0], recipe.directions[1]]
        again = Deltas(family, used, cache=cache)
        again.prepare()
        original = Deltas(
            family, [replace(each, stored=None, sha256=None) for each in used], cache=None, statistics=Grams(family)
        )
        for name, tensor in merged(family, again, [0.4, 0.9]).items():
            assert torch.equal(tensor, merged(family, original, [0.4, 0.9])[name]), name


def test_names_that_are_no_folder_names_are_kept_apart(tiny: Callable[[str], Family], tmp_path: Path) -> None:
    family = tiny("bert")
    made = kept(family, tmp_path / "run", tmp_path / "cache", [0.0, 1.0, 1.0])
    folders = sorted(path.name for path in (tmp_path / "run" / "directions").iterdir())
    assert folders == ["regmean", "regmean%5Bshrink=0.5%5D"]
    assert Recipe.load(tmp_path / "run" / "recipe.yaml").directions == made.directions
    assert made.directions[1].sha256 != made.directions[2].sha256


def test_names_that_are_too_long_for_a_folder_are_cut(tiny: Callable[[str], Family], tmp_path: Path) -> None:
    family = tiny("bert")
    names = [f"regmean[weights={'long' * 80}{end}]" for end in "ab"]
    directions = tuple(Direction(name, "method", RegMeanConfig()) for name in names)
    deltas = Deltas(family, directions, cache=tmp_path / "cache", statistics=Grams(family))
    deltas.prepare()
    recipe = Recipe(
        base=ModelEntry(family.base.reference),
        experts={name: ModelEntry(each.reference) for name, each in family.experts.items()},
        directions=directions,
        groups=(Group("model", ("*",), None, "model"),),
        coefficient_fn=Static(np.array([[1.0, 1.0]])),
    )
    made = deltas.kept_in(recipe, tmp_path / "run")
    folders = [Path(str(direction.stored)) for direction in made.directions]
    assert all(folder.is_dir() and folder.parent == tmp_path / "run" / "directions" for folder in folders)
    assert folders[0] != folders[1]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: [path.unlink() for path in folder.iterdir()] and folder.rmdir(), "which is not there"),
        (lambda folder: folder.joinpath("part-00000.safetensors").write_bytes(_other_bits(folder)), "another hash"),
    ],
)
def test_a_stored_direction_that_changed_is_refused(
    tiny: Callable[[str], Family], tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    family = tiny("bert")
    kept(family, tmp_path / "run", tmp_path / "cache", [0.0, 1.0, 0.0])
    spoil(tmp_path / "run" / "directions" / "regmean")
    recipe = Recipe.load(tmp_path / "run" / "recipe.yaml")
    with pytest.raises(RecipeError, match=said):
        Deltas(family, recipe.directions[1:2], cache=None).segments(next(iter(family.parameters)))


def test_a_stored_direction_of_another_model_is_refused(tiny: Callable[[str], Family], tmp_path: Path) -> None:
    family = tiny("bert")
    made = kept(family, tmp_path / "run", tmp_path / "cache", [0.0, 1.0, 0.0])
    with pytest.raises(RecipeError, match=r"has no tensor for model\.embed_tokens\.weight"):
        Deltas(tiny("llama"), [made.directions[1]], cache=None).prepare()


def _other_bits(folder: Path) -> bytes:
    content = bytearray((folder / "part-00000.safetensors").read_bytes())
    header = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + header])
    content[-1] ^= 1
    return bytes(content)


def test_a_parameter_that_experts_leave_alone_is_known(tmp_path: Path) -> None:
    words = make_model("bert-body").get_input_embeddings().weight

    def change(who: str, model: PreTrainedModel) -> None:
        if who != "base":
            model.get_input_embeddings().weight.data.copy_(words)

    made = save_family("bert", tmp_path, change=change)
    experts = {name: str(folder) for name, folder in made.experts.items()}
    family = open_family(str(made.base), experts, relative_to=Path())
    directions = (
        *expand_directions(["experts", TiesConfig()], list(experts)),
        *expand_directions(["experts"], list(experts), DareConfig()),
    )
    same = {direction.name: frozenset({"bert.embeddings.word_embeddings.weight"}) for direction in directions}
    assert Deltas(family, directions, cache=None).untouched() == same
    whole_sum = expand_directions([LinearConfig(normalize=False)], list(experts))  # base + base is not the base
    assert Deltas(family, whole_sum, cache=None).untouched() == {"linear": frozenset()}


def test_what_experts_leave_alone_is_known_apart_for_each_choice_of_heads(tmp_path: Path) -> None:
    head = "lm_head.weight"

    def change(who: str, model: PreTrainedModel) -> None:
        model.get_parameter(head).data.fill_(0.5)

    made = save_family("llama", tmp_path, change=change)
    experts = {name: str(folder) for name, folder in made.experts.items()}
    for heads, expected in (("own", frozenset[str]()), ("merged", frozenset({head}))):
        family = open_family(str(made.base), experts, relative_to=Path(), heads=heads)  # type: ignore[arg-type]
        deltas = Deltas(family, expand_directions(["experts"], list(experts)), cache=None)
        assert deltas.untouched() == dict.fromkeys(experts, expected)
