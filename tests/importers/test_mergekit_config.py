"""Reading mergekit configurations: forms, references, and what is refused or noted."""

from __future__ import annotations

from typing import Any

import pytest

from optmerge.errors import ConfigError
from optmerge.importers.mergekit_config import MergekitConfig, model_reference, parse_mergekit
from optmerge.importers.mergekit_settings import Parameter
from optmerge.importers.mergekit_values import Place, TensorValues, values_of
from optmerge.importers.notes import Notes, comment

WEIGHT = (Parameter("weight", float, "non-base", required=True), Parameter("lambda", float, default=1.0))
PLACES = {
    "embed": Place("before"),
    **{f"layers.{index}.w": Place("layer", index) for index in range(4)},
    "norm": Place("after"),
}


def parsed(notes: Notes | None = None, **body: Any) -> MergekitConfig:
    return parse_mergekit({"merge_method": "ties", **body}, source="merge.yml", notes=notes or Notes())


def weights(config: MergekitConfig, model: str, places: dict[str, Place] = PLACES) -> list[Any]:
    values = values_of(config, WEIGHT, places, num_layers=4)
    return [each.own.get(model, {}).get("weight") for each in values.values()]


def models(**weight: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": each}} for name, each in weight.items()]


def sliced(*parts: tuple[list[int], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"sources": [{"model": m, "layer_range": layers, "parameters": {"weight": w}} for m, w in each.items()]}
        for layers, each in parts
    ]


def test_gradients_over_a_model() -> None:
    config = parsed(models=models(a=[0.0, 3.0], b=[1, 2, 3, 4]), base_model="x")
    assert weights(config, "a") == pytest.approx([0, 0, 1, 2, 3, 0])  # everything outside the layers has the first
    assert weights(config, "b") == pytest.approx([1, 1, 2, 3, 4, 1])
    (whole,) = {each.models for each in values_of(config, WEIGHT, PLACES, num_layers=4).values()}
    assert whole == ("a", "b", "x")  # mergekit adds the base


def test_gradients_over_slices() -> None:
    config = parsed(slices=sliced(([0, 1], {"a": [0.1, 0.9]}), ([1, 4], {"a": [1.0, 2.0]})))
    # A slice of one layer has a list's last value for it, and its first for what is outside.
    assert weights(config, "a") == pytest.approx([0.1, 0.9, 1.0, 1.5, 2.0, 1.0])


def test_slices_of_no_layer_are_for_the_ends() -> None:
    config = parsed(slices=sliced(([0, 0], {"a": 5}), ([0, 4], {"a": 1}), ([4, 4], {"a": 7})))
    assert weights(config, "a") == [5, 1, 1, 1, 1, 7]


def test_behind_the_layers_stand_as_many_sources_as_the_first_slice_has() -> None:
    config = parsed(slices=sliced(([0, 2], {"a": 1}), ([2, 4], {"b": 2, "a": 3})))
    values = values_of(config, WEIGHT, PLACES, num_layers=4)
    assert values["norm"].models == ("b",)
    assert values["layers.3.w"].models == ("b", "a")


def test_a_slices_own_base_and_settings_come_first() -> None:
    slices = sliced(([0, 4], {"a": 1, "b": 2}))
    slices[0] |= {"base_model": "b", "parameters": {"lambda": 2}}
    values = values_of(parsed(slices=slices, base_model="a", parameters={"lambda": 3}), WEIGHT, PLACES, num_layers=4)
    assert values["norm"] == TensorValues("b", ("a", "b"), {"lambda": 2.0}, {"a": {"weight": 1.0}, "b": {}})


def test_one_module_is_like_the_whole_model() -> None:
    config = parsed(modules={"decoder": {"models": models(a=1), "parameters": {"lambda": 2}}}, parameters={"lambda": 3})
    assert values_of(config, WEIGHT, PLACES, num_layers=4)["embed"].shared == {"lambda": 2.0}


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (sliced(([0, 2], {"a": 1}), ([1, 4], {"a": 1})), r"puts layer 1 where layer 2 of the merged model is"),
        (sliced(([0, 2], {"a": 1})), r"have 2 layers and the models 4"),
        (
            [{"sources": [{"model": "a", "layer_range": [0, 2]}, {"model": "b", "layer_range": [2, 4]}]}],
            r"merges different layers of its sources",
        ),
    ],
)
def test_other_layers_are_refused(slices: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weights(parsed(slices=slices), "a")


def test_unknown_sides_are_refused_only_where_they_matter() -> None:
    places = {**PLACES, "norm": Place("outside"), "embed": Place("outside")}
    alike = parsed(slices=sliced(([0, 2], {"a": [1, 2]}), ([2, 4], {"a": [1, 3]})))
    assert weights(alike, "a", places) == [1, 1, 2, 1, 3, 1]
    with pytest.raises(ConfigError, match="stands outside the layers"):
        weights(parsed(slices=sliced(([0, 2], {"a": 1}), ([2, 4], {"a": 3}))), "a", places)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("org/m@v1", "org/m@v1"),
        ("m+lora", "m+lora"),
        ({"path": "org/m", "revision": "v1"}, "org/m@v1"),
        ({"model": {"path": "m"}, "lora": {"path": "l", "revision": None}}, "m+l"),
    ],
)
def test_references(value: object, expected: str) -> None:
    assert model_reference(value, "here") == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"models": []}, "none of models, slices and modules"),
        (
            {"models": models(a=1), "slices": sliced(([0, 4], {"a": 1}))},
            "models and slices; mergekit wants exactly one",
        ),
        ({"models": models(a=1) * 2}, "names a twice"),
        ({"models": [{"modle": "a"}]}, "expected a model"),
        ({"modules": {"a": {}, "b": {}}}, "has 2 modules"),
        ({"models": models(a=1), "dtype": "bflaot16"}, "Did you mean 'bfloat16'"),
        ({"models": models(a=1), "tokenizer": {"tokens": {"<x>": {}}}}, "tokenizer.tokens gives single tokens"),
        ({"models": models(a=1), "tokenizer": {}, "tokenizer_source": "base"}, "has both tokenizer_source"),
        (
            {"models": models(a=1), "tokenizer": {"source": "a"}, "tokenizer_source": "base"},
            "has both tokenizer_source",
        ),
        ({"slices": [{"sources": [{"model": "a", "layer_range": [3]}]}]}, "layer_range is"),
        ({"models": [{"model": {"model": "a", "override_architecture": "X"}}]}, "override_architecture"),
        ({"models": models(a=1), "parameters": [1]}, "parameters is \\[1\\]; expected a mapping"),
    ],
)
def test_what_is_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(**body)


def test_other_files_are_sent_to_their_option() -> None:
    with pytest.raises(ConfigError, match="use --from-mergekit-evolve"):
        parse_mergekit({"genome": {}}, source="x", notes=Notes())
    with pytest.raises(ConfigError, match="merge_method is missing"):
        parse_mergekit(["a"], source="x", notes=Notes())


def test_ignored_keys_are_noted_with_what_was_meant() -> None:
    notes = Notes()
    parsed(
        notes,
        models=[{"model": "a", "weight": 1}],
        paramters={},
        chat_template="auto",
        tokenizer={"source": "a", "pad_to_multiple_of": 8},
    )
    assert set(notes.left) == {"paramters", "models[0].weight", "chat_template", "tokenizer.pad_to_multiple_of"}
    assert "Did you mean 'parameters'?" in notes.left["paramters"]


def test_comments_are_folded() -> None:
    text = comment("title:\n  " + "word " * 60)
    assert all(line.startswith("#") and len(line) <= 120 for line in text.splitlines())
    assert len(text.splitlines()) > 3
