"""mergekit configurations as recipes; that the merges are the same is shown in tests/peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from optmerge.errors import ConfigError
from optmerge.export.api import write_checkpoint
from optmerge.importers.mergekit import recipe_from_mergekit
from optmerge.importers.mergekit_methods import BEYOND, RULES
from optmerge.importers.references import expert_names, reference_from
from optmerge.importers.translation import Translation
from optmerge.merging.recipe import Recipe

Translate = Any
ONE_TWO = [
    {"model": "one", "parameters": {"weight": 0.4, "density": 0.5}},
    {"model": "two", "parameters": {"weight": 0.6, "density": 0.5}},
]


@pytest.fixture
def translate(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Translate:
    """``translate(merge_method="ties", ...)`` as if typed in the zoo's folder; the recipe is beside it."""
    monkeypatch.chdir(zoo)

    def call(**body: Any) -> Translation:
        file = tmp_path / "merge.yml"
        file.write_text(yaml.safe_dump(body))
        return recipe_from_mergekit(file, to=tmp_path / "recipe.yaml")

    return call


def read(translation: Translation) -> Recipe:
    return Recipe.from_yaml(translation.text)


def test_uniform_task_arithmetic_is_the_short_form(translate: Translate, tmp_path: Path) -> None:
    made = translate(
        merge_method="task_arithmetic",
        base_model="base",
        models=ONE_TWO,
        parameters={"lambda": 0.5, "int8_mask": True},
        dtype="float32",
        out_dtype="bfloat16",
        tokenizer_source="two",
    )
    body = yaml.safe_load(made.text)
    assert body["coefficients"] == {"one": 0.2, "two": 0.3}
    assert (body["dtype"], body["tokenizer"], body["heads"]) == ("bfloat16", "two", "merged")
    assert not {"groups", "directions"} & body.keys()
    assert (tmp_path / body["base"]).is_dir()  # relative to the recipe
    assert set(made.notes.left) == {"parameters.int8_mask", "model parameters.density", "tokenizer (the vocabulary)"}
    assert {"merge_method", "base_model", "models", "out_dtype", "tokenizer", "parameters.lambda"} <= set(
        made.notes.carried
    )
    (tmp_path / "recipe.yaml").write_text(made.text)
    assert write_checkpoint(tmp_path / "recipe.yaml", tmp_path / "merged").dtype == "bfloat16"


def test_every_note_stands_in_the_file(translate: Translate) -> None:
    made = translate(merge_method="ties", base_model="base", models=ONE_TWO, paramters={}, parameters={"desnity": 1})
    said = " ".join(line.lstrip("# ") for line in made.text.splitlines() if line.startswith("#"))
    for key, text in (made.notes.carried | made.notes.left).items():
        assert f"{key}: {text}" in said
    assert made.notes.left["parameters.desnity"].endswith("Did you mean 'density'?")


def test_equal_rows_are_one_group_and_the_largest_has_the_rest(translate: Translate) -> None:
    weight = [{"filter": "self_attn", "value": [0.0, 0.3]}, {"value": 0.7}]
    recipe = read(
        translate(
            merge_method="task_arithmetic",
            base_model="base",
            models=[{"model": "one", "parameters": {"weight": weight}}],
        )
    )
    assert {group.name for group in recipe.groups} == {
        "group-1",
        *(f"group-{number}-layer-{layer}" for number, layer in ((2, 0), (3, 1), (4, 2), (5, 3))),
    }
    (rest,) = (group for group in recipe.groups if group.tensors == ("*",))
    rows = {group.name: float(row[0]) for group, row in zip(recipe.groups, recipe.coefficients, strict=True)}
    assert rows.pop(rest.name) == 0.7
    assert sorted(rows.values()) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert all("self_attn" in tensor for group in recipe.groups if group is not rest for tensor in group.tensors)


def test_a_direction_for_each_set_of_settings(translate: Translate) -> None:
    recipe = read(
        translate(
            merge_method="slerp",
            base_model="base",
            models=[{"model": "base"}, {"model": "one"}],
            parameters={"t": [0.0, 1.0]},
        )
    )
    assert [direction.name for direction in recipe.directions] == ["slerp-1", "slerp-2", "slerp-3", "slerp-4"]
    assert [direction.config.t for direction in recipe.directions] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert (recipe.coefficients.sum(1) == 1).all()


def test_densities_of_single_models_where_parts_are_added_up(translate: Translate) -> None:
    models = [
        {"model": "one", "parameters": {"weight": 1.0, "density": 0.3}},
        {"model": "two", "parameters": {"weight": 3.0, "density": 0.9}},
    ]
    settings = {"base_model": "base", "models": models, "parameters": {"normalize": True, "lambda": 2.0}}
    made = translate(merge_method="dare_linear", **settings)
    recipe = read(made)
    assert [(d.name, d.expert, d.config.drop) for d in recipe.directions] == [
        ("dare:one", "one", 0.7),
        ("dare:two", "two", 0.1),
    ]
    assert recipe.coefficients.tolist() == [[0.5, 1.5]]
    assert "drawn at random" in made.notes.carried["merge_method"]
    with pytest.raises(ConfigError, match=r"different values of density \(one: 0.3, two: 0.9\)"):
        translate(merge_method="dare_ties", **settings)


def test_without_a_base_the_first_model_is_it(translate: Translate) -> None:
    models = [{"model": name, "parameters": {"weight": weight}} for name, weight in (("one", 1), ("two", 3))]
    made = translate(merge_method="linear", models=models)
    body = yaml.safe_load(made.text)
    assert body["base"].endswith("one")
    assert list(body["experts"]) == ["two"]
    assert body["coefficients"] == {"two": 0.75}
    assert "the recipe adds to the first model, one" in made.notes.carried["base_model"]


def test_a_model_alone_is_its_own_expert(translate: Translate) -> None:
    recipe = read(translate(merge_method="passthrough", models=[{"model": "one"}]))
    assert recipe.coefficients.tolist() == [[0.0]]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"merge_method": "tise"}, "Did you mean 'ties'"),
    *(({"merge_method": name}, f"optmerge has no {name}") for name in BEYOND),
    ({"merge_method": "ties", "base_model": None}, "ties needs a base_model"),
    ({"merge_method": "ties", "models": [{"model": "one"}]}, "'weight' is missing"),
    ({"merge_method": "ties", "parameters": {"rescale": True}}, "rescale is true"),
    ({"merge_method": "breadcrumbs", "parameters": {"rescale": True}}, "rescale is true"),
    ({"merge_method": "ties", "models": [{"model": "one", "parameters": {"weight": -1}}]}, "A weight is negative"),
    ({"merge_method": "dare_linear", "models": ONE_TWO[:1], "parameters": {"density": 0}}, None),
    (
        {"merge_method": "linear", "models": [{"model": "one", "parameters": {"weight": 0}}], "base_model": None},
        "add up",
    ),
    ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "slerp is between a base and one other model"),
    ({"merge_method": "slerp", "parameters": {"t": 1.5}, "models": ONE_TWO[:1]}, "t of slerp is 1.5"),
    ({"merge_method": "nuslerp", "models": ONE_TWO[:1]}, "nuslerp is between two models beside the base"),
    ({"merge_method": "multislerp", "parameters": {"normalize_weights": False}}, "normalize_weights is false"),
    ({"merge_method": "multislerp", "parameters": {"eps": 1e-6}}, "eps of multislerp is fixed"),
    ({"merge_method": "passthrough", "base_model": None}, "passthrough takes one model per slice"),
    ({"merge_method": "ties", "tokenizer_source": "three"}, "The tokenizer is that of three, which is not among"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_a_recipe_cannot_say(translate: Translate, change: dict[str, Any], message: str | None) -> None:
    body = {"base_model": "base", "models": ONE_TWO, **change}
    if message is None:  # a model's own density comes before the one for all
        assert read(translate(**body)).directions[0].config.drop == 0.5
        return
    with pytest.raises(ConfigError, match=message):
        translate(**body)


@pytest.mark.parametrize("method", ["model_stock", "sce", "karcher"])
def test_methods_that_look_at_all_models_want_the_same_ones_everywhere(translate: Translate, method: str) -> None:
    slices = [
        {"sources": [{"model": model, "layer_range": layers} for model in ("base", *experts)]}
        for layers, experts in (([0, 2], ("one", "two")), ([2, 4], ("one", "three")))
    ]
    with pytest.raises(ConfigError, match=f"{method} looks at all of its models together"):
        translate(merge_method=method, base_model="base", slices=slices)


def test_the_base_of_a_slice_must_be_the_recipes(translate: Translate) -> None:
    slices = [
        {
            "base_model": base,
            "sources": [
                {"model": model, "layer_range": layers, "parameters": {"weight": 1}} for model in ("base", "one", "two")
            ],
        }
        for layers, base in (([0, 2], "base"), ([2, 4], "one"))
    ]
    with pytest.raises(ConfigError, match="A slice has the base one and the recipe base"):
        translate(merge_method="ties", base_model="base", slices=slices)
    for part in slices:
        part["sources"] = part["sources"][1:]
    with pytest.raises(ConfigError, match="needs its base among the sources"):
        translate(merge_method="ties", base_model="base", slices=slices)


def test_every_rule_has_settings_that_optmerge_knows() -> None:
    """The rules' methods are in `optmerge.config`; that each makes a readable recipe is shown beside mergekit."""
    assert {"linear", "task_arithmetic", "ties", "dare_ties", "slerp"} <= RULES.keys()
    assert not RULES.keys() & BEYOND.keys()


def test_names_and_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = expert_names(["org/math-7b@v1", "zoo/math-7b/", "m+zoo/my lora", "zoo/base", "../experts"])
    assert list(names.values()) == ["math-7b", "math-7b-2", "my-lora", "base-expert", "experts-expert"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo" / "a+b").mkdir(parents=True)
    (tmp_path / "zoo" / "lora").mkdir()
    deep = Path("deep/er")
    assert reference_from("zoo/a+b", deep) == "../../zoo/a+b"
    assert reference_from("org/model@v1+zoo/lora", deep) == "org/model@v1+../../zoo/lora"
    assert reference_from(str(tmp_path / "zoo"), deep) == str(tmp_path / "zoo")
