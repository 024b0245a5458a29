"""Bands of singular components: they add up, are orthogonal, and merge as the engine and the exporters say."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import IsoCConfig, TaskArithmeticConfig, TsvMConfig
from optmerge.config.spectral import SpectralConfig
from optmerge.errors import ConfigError, RecipeError
from optmerge.merging.deltas import Deltas
from optmerge.merging.directions import expand_directions, known_directions
from optmerge.merging.methods import build_method
from optmerge.merging.methods.bands import Bands, band_numbers
from optmerge.merging.models_view import FamilyModels
from optmerge.merging.recipe import Direction, Recipe
from optmerge.models.family import Family, open_family
from tests.tiny import save_family

WHOLES = {"task_arithmetic": TaskArithmeticConfig(), "tsv-m": TsvMConfig(), "iso-c": IsoCConfig()}
Divide = Literal["energy", "count"]


@pytest.fixture(scope="module", params=["llama", "mixtral", "gpt2"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    saved = save_family(request.param, tmp_path_factory.mktemp(request.param))
    return open_family(str(saved.base), {name: str(path) for name, path in saved.experts.items()}, relative_to=Path())


def bands(family: Family, **settings: object) -> Bands:
    made = build_method(SpectralConfig.model_validate(settings), list(family.experts))
    assert isinstance(made, Bands)
    return made


@pytest.mark.parametrize("of", list(WHOLES))
@pytest.mark.parametrize("divide", ["energy", "count"])
@pytest.mark.parametrize("embeddings", ["whole", "matrix"])
def test_bands_add_up_to_what_is_divided(family: Family, of: str, divide: str, embeddings: str) -> None:
    models = FamilyModels(family)
    made = bands(family, of=of, divide=divide, bands=3, embeddings=embeddings)
    whole = build_method(WHOLES[of], list(family.experts))  # type: ignore[arg-type]
    divided = 0
    for name in family.parameters:
        found = made.band_deltas(models, name)
        wanted = whole.expert_deltas(models, name) if made.by_expert else [whole.delta(models, name)]
        count = made.count(models.kind(name))
        divided += count > 1
        assert len(found) == count * len(wanted)
        for number, delta in enumerate(wanted):
            mine = found[number * count : (number + 1) * count]
            assert all(band.shape == delta.shape for band in mine)
            torch.testing.assert_close(sum(mine), delta, rtol=0.0, atol=1e-6 * float(delta.abs().max()))
    assert divided > 4


@pytest.mark.parametrize("of", list(WHOLES))
def test_a_scale_is_that_of_every_band(family: Family, of: str) -> None:
    models = FamilyModels(family)
    plain, scaled = (bands(family, of=of, bands=3, scale=scale) for scale in (1.0, 0.25))
    for name in family.parameters:
        torch.testing.assert_close(scaled.delta(models, name), 0.25 * plain.delta(models, name))
        for ours, whole in zip(scaled.band_deltas(models, name), plain.band_deltas(models, name), strict=True):
            torch.testing.assert_close(ours, 0.25 * whole, rtol=1e-4, atol=1e-6)


def test_bands_of_a_matrix_are_orthogonal_and_fall(family: Family) -> None:
    models = FamilyModels(family)
    made = bands(family, bands=4, divide="count")
    name = next(name for name in family.parameters if made.divides(models.kind(name)))
    first = made.band_deltas(models, name)[:4]
    shape = first[0].shape[-2:]
    matrices = [band.reshape(-1, *shape)[0].double() for band in first]
    for number, band in enumerate(matrices):
        for other in matrices[:number]:
            assert float((band @ other.mT).abs().max()) < 1e-6
            assert float((band.mT @ other).abs().max()) < 1e-6
    norms = [float(torch.linalg.matrix_norm(band, 2)) for band in matrices]
    assert norms == sorted(norms, reverse=True)


@given(
    values=st.lists(st.floats(0, 10), min_size=1, max_size=20),
    bands=st.integers(2, 6),
    divide=st.sampled_from(["energy", "count"]),
)
def test_every_component_has_a_band_and_no_band_is_skipped(values: list[float], bands: int, divide: Divide) -> None:
    sigma = torch.tensor(sorted(values, reverse=True))
    numbers = band_numbers(sigma, bands, divide).tolist()
    there = int(torch.count_nonzero(sigma))
    assert numbers == sorted(numbers)
    assert set(numbers[:there]) == set(range(min(bands, there)))
    assert set(numbers[there:]) <= {bands - 1}


def test_bands_have_equal_energy() -> None:
    sigma = torch.linspace(3.0, 0.01, 400)
    numbers = band_numbers(sigma, 4, "energy")
    shares = [float((sigma[numbers == band] ** 2).sum() / (sigma**2).sum()) for band in range(4)]
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
    assert [int((band_numbers(sigma, 4, "count") == band).sum()) for band in range(4)] == [100] * 4


def test_stacked_matrices_have_bands_of_their_own() -> None:
    sigma = torch.tensor([[4.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert band_numbers(sigma, 2, "energy").tolist() == [[0, 1, 1, 1], [0, 0, 1, 1]]


def test_names_lanes_and_wholes() -> None:
    found = expand_directions(["experts", SpectralConfig(bands=2), SpectralConfig(of="iso-c", bands=2)], ["a", "b"])
    assert [(d.name, d.lane, d.whole) for d in found] == [
        ("a", "experts", "experts"),
        ("b", "experts", "experts"),
        ("spectral.1:a", "spectral.1", "spectral"),
        ("spectral.1:b", "spectral.1", "spectral"),
        ("spectral.2:a", "spectral.2", "spectral"),
        ("spectral.2:b", "spectral.2", "spectral"),
        ("spectral[of=iso-c].1", "spectral[of=iso-c].1", "spectral[of=iso-c]"),
        ("spectral[of=iso-c].2", "spectral[of=iso-c].2", "spectral[of=iso-c]"),
    ]
    assert known_directions(found, [IsoCConfig()], ["a", "b"])[-1].name == "iso-c"
    with pytest.raises(ConfigError, match="spectral appears more than once"):
        expand_directions([SpectralConfig(), SpectralConfig()], ["a"])
    with pytest.raises(ConfigError, match=r"called like the method spectral"):
        expand_directions([SpectralConfig()], ["spectral"])


def test_a_vector_is_in_the_first_band_alone(family: Family, tmp_path: Path) -> None:
    directions = expand_directions([SpectralConfig(bands=3)], list(family.experts))
    for cache in (None, tmp_path):
        deltas = Deltas(family, directions, cache=cache)
        deltas.prepare()
        untouched = deltas.untouched()
        norm = next(name for name, parameter in family.parameters.items() if len(parameter.shape) == 1)
        matrix = next(n for n, p in family.parameters.items() if len(p.shape) == 2 and p.role.layer is not None)
        sources = deltas.segments(norm)[0].sources
        assert [source is None for source in sources] == [False] * 2 + [True] * 4
        assert [norm in untouched[direction.name] for direction in directions] == [False] * 2 + [True] * 4
        assert not any(matrix in untouched[direction.name] for direction in directions)
        assert all(source is not None for source in deltas.segments(matrix)[0].sources)


RECIPE = """
optmerge_recipe: 1
base: base
experts: {{a: one, b: two}}
directions:
- {{name: one, expert: a, method: {{name: spectral, bands: 3}}, band: 2}}
- {{expert: b, method: {{name: spectral, bands: 3}}, band: 1}}
- {entry}
coefficients: {{one: 0.5, "spectral.1:b": 0.25, "spectral.2": 1.0}}
"""
GOOD = "{method: {name: spectral, of: iso-c}, band: 2}"


def test_a_recipe_says_which_band() -> None:
    made = Recipe.from_yaml(RECIPE.format(entry=GOOD))
    assert made.directions == (
        Direction("one", "part", SpectralConfig(bands=3), "a", band=2),
        Direction("spectral.1:b", "part", SpectralConfig(bands=3), "b", band=1),
        Direction("spectral.2", "part", SpectralConfig(of="iso-c"), band=2),
    )
    assert Recipe.from_yaml(made.to_yaml()).directions == made.directions


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("{expert: a, method: {name: spectral}}", r"the key 'band' is missing from directions\[2\]"),
        ("{expert: a, method: {name: spectral}, band: 5}", r"band is 5; expected a whole number from 1 to 4"),
        ("{method: {name: spectral}, band: 1}", "of every expert apart; add expert"),
        ("{expert: a, method: {name: spectral, of: iso-c}, band: 1}", "of no single expert; take expert out"),
        ("{method: {name: iso-c}, band: 1}", "only spectral has bands"),
        ("{method: {name: spectrl}, band: 1}", "Did you mean 'spectral'"),
        ("{method: {name: spectral, band: 4}, band: 1}", "Did you mean 'bands'"),
    ],
)
def test_mistakes_in_a_recipe_are_told(entry: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        Recipe.from_yaml(RECIPE.format(entry=entry))
