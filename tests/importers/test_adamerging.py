"""Files of coefficients as FusionBench and AdaMerging's own code save them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from optmerge.errors import ConfigError
from optmerge.importers.adamerging import read_coefficients, recipe_from_adamerging
from optmerge.importers.translation import Translation
from optmerge.merging.recipe import Recipe

TENSORS = 39  # of a Llama with four layers: nine in each, embeddings, norm, head


@pytest.fixture
def drawn() -> torch.Tensor:
    return torch.rand(2, TENSORS, generator=torch.Generator().manual_seed(0))


def translated(value: object, zoo: Path, tmp_path: Path) -> Translation:
    torch.save(value, tmp_path / "weights.pt")
    experts = {"b": str(zoo / "two"), "a": str(zoo / "one")}
    return recipe_from_adamerging(
        tmp_path / "weights.pt", base=str(zoo / "base"), experts=experts, to=tmp_path / "recipe.yaml"
    )


def test_task_wise(zoo: Path, tmp_path: Path) -> None:
    made = translated(torch.nn.Parameter(torch.tensor([0.25, 0.5])), zoo, tmp_path)
    assert yaml.safe_load(made.text)["coefficients"] == {"b": 0.25, "a": 0.5}
    assert not made.notes.left


def test_layer_wise_in_both_orientations(drawn: torch.Tensor, zoo: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(translated(drawn, zoo, tmp_path).text)
    assert np.array_equal(recipe.coefficients, drawn.T.double().numpy())
    assert list(recipe.experts) == ["b", "a"]
    assert [recipe.groups[0].tensors, recipe.groups[-1].tensors] == [
        ("model.embed_tokens.weight",),
        ("lm_head.weight",),
    ]
    turned = Recipe.from_yaml(translated(drawn.T.contiguous(), zoo, tmp_path).text)
    assert np.array_equal(turned.coefficients, recipe.coefficients)


def test_what_its_code_would_cut_is_cut_and_told(drawn: torch.Tensor, zoo: Path, tmp_path: Path) -> None:
    drawn[0, :3] = torch.tensor([-0.5, 1.5, 1.0])
    made = translated(drawn, zoo, tmp_path)
    assert Recipe.from_yaml(made.text).coefficients[:3, 0].tolist() == [0.0, 1.0, 1.0]
    assert list(made.notes.left) == ["2 coefficients below 0 or above 1"]


def test_a_shape_that_does_not_fit(zoo: Path, tmp_path: Path) -> None:
    for shape in ([3], [2, TENSORS + 1], [3, TENSORS]):
        with pytest.raises(
            ConfigError, match=rf"is \[{shape[0]}.*expected \[2\], \[2, {TENSORS}\] or \[{TENSORS}, 2\]"
        ):
            translated(torch.zeros(shape), zoo, tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": torch.zeros(2)}, "holds dict; expected a tensor"),
        (torch.zeros(2, dtype=torch.int64), r"a tensor \[2\] of torch.int64"),
        (torch.zeros(2, 2, 2), r"a tensor \[2, 2, 2\]"),
        (torch.tensor([0.1, float("nan")]), "not finite"),
    ],
)
def test_what_is_no_table(value: object, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(ConfigError, match=message):
        read_coefficients(tmp_path / "weights.pt")


def test_files_that_would_run_code_are_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    with pytest.raises(ConfigError, match="There is no file"):
        read_coefficients(file)
    file.write_bytes(pickle.dumps(Path("somewhere"), protocol=2))
    with pytest.raises(ConfigError, match="no code is run"):
        read_coefficients(file)
    file.write_text("0.3 0.3")
    with pytest.raises(ConfigError, match="cannot be read as a tensor"):
        read_coefficients(file)
