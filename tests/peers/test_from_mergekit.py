"""Configurations of mergekit, translated to recipes: `optmerge merge` makes what mergekit makes of the originals.

Task arithmetic is the same to the last bit where no weight is divided or multiplied twice, everything else to 1e-6.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from optmerge.export.api import write_checkpoint
from optmerge.export.mergekit_layouts import LAYOUTS
from optmerge.importers.mergekit import _BEFORE, recipe_from_mergekit
from tests.tiny import save_family

pytestmark = pytest.mark.peers

Peer = Callable[..., str]

BEFORE_THE_LAYERS = """
import json, sys
from mergekit.architecture.json_definitions import NAME_TO_ARCH
found = {}
for name in sys.argv[1:]:
    ((_, module),) = NAME_TO_ARCH[name][0].modules.items()
    definition = module.architecture.definition
    found[name] = [[w.name for w in definition.pre_weights], [w.name for w in definition.post_weights]]
print(json.dumps(found))
"""

MERGE = """
import sys
from pathlib import Path
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for file in sorted(Path(sys.argv[1]).glob("*.yml")):
    config = MergeConfiguration.model_validate(yaml.safe_load(file.read_text()))
    options = MergeOptions(write_model_card=False, copy_tokenizer=False, quiet=True)
    try:
        run_merge(config, str(file.with_suffix("")), options=options)
    except Exception as problem:
        raise SystemExit(f"{file.name}: {problem!r}")
"""

ATTENTION = [{"filter": "self_attn", "value": [0.1, 0.9]}, {"filter": "mlp", "value": 0.4}, {"value": 0.7}]


def models(**parameters: dict[str, object]) -> list[dict[str, object]]:
    return [{"model": name, "parameters": each} if each else {"model": name} for name, each in parameters.items()]


def sliced(first: dict[str, dict[str, object]], second: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    """Four layers in two slices."""
    return [
        {"sources": [{"model": name, "layer_range": layers, "parameters": each} for name, each in part.items()]}
        for part, layers in ((first, [0, 1]), (second, [1, 4]))
    ]


W = {"weight": [0.2, 0.5, 0.3]}
THREE = {"one": {"weight": 0.4}, "two": {"weight": 1.5}, "three": {"weight": 0.7}}
BASE = {"base_model": "base"}
EXACT: dict[str, dict[str, object]] = {
    "task_arithmetic": BASE
    | {
        "models": models(base={}, one={"weight": ATTENTION}, two={"weight": "-3e-1"}, three=W),
        "merge_method": "task_arithmetic",
    },
    "task_arithmetic-slices": BASE
    | {
        "slices": sliced(
            {"one": {"weight": 0.3}, "two": {"weight": 0.1}, "base": {}},
            {"two": {"weight": [0.5, -0.5]}, "three": {}, "base": {}},
        ),
        "parameters": {"weight": [{"filter": "norm", "value": 0.25}, {"value": 0.75}]},
        "merge_method": "task_arithmetic",
    },
    "passthrough-slices": {"slices": sliced({"one": {}}, {"two": {}}), "merge_method": "passthrough"},
}
NEAR: dict[str, dict[str, object]] = {
    "task_arithmetic-normalized": BASE
    | {
        "models": models(one={"weight": ATTENTION}, two=W),
        "parameters": {"normalize": True, "lambda": [0.9, 1.1]},
        "merge_method": "task_arithmetic",
    },
    "linear": {"models": models(one={"weight": 0.4}, two={"weight": [0.2, 0.8]}, three=W), "merge_method": "linear"},
    "linear-based": BASE
    | {"models": models(one={"weight": 0.4}, base={"weight": [0.2, 0.8]}, three=W), "merge_method": "linear"},
    "linear-sum": BASE
    | {
        "models": models(one={"weight": 0.4}, base={"weight": 0.2}, three={"weight": -0.1}),
        "parameters": {"normalize": False},
        "merge_method": "linear",
    },
    "linear-global": BASE | {"models": models(one={}, two={}), "parameters": {"weight": 0.5}, "merge_method": "linear"},
    "ties": BASE
    | {
        "models": models(one={"weight": ATTENTION, "density": 0.5}, two={"weight": 0.6, "density": 0.5}),
        "parameters": {"lambda": 0.8, "int8_mask": True},
        "merge_method": "ties",
    },
    "ties-sum": BASE
    | {
        "models": models(**THREE),
        "parameters": {"normalize": False, "density": [0.3, 0.9]},
        "merge_method": "ties",
    },
    "ties-slices": BASE
    | {
        "slices": sliced(
            {"one": {"weight": 0.3}, "base": {}}, {"two": {"weight": 0.5}, "base": {}, "three": {"weight": 1.0}}
        ),
        "parameters": {"density": 0.4},
        "merge_method": "ties",
    },
    "dare_ties-dense": BASE | {"models": models(**THREE), "merge_method": "dare_ties"},
    "dare_linear-dense": BASE
    | {"models": models(**THREE), "parameters": {"normalize": True}, "merge_method": "dare_linear"},
    "breadcrumbs": BASE
    | {
        "models": models(
            one={"weight": 0.4, "density": 0.9, "gamma": 0.02}, two={"weight": W["weight"], "density": 0.5}
        ),
        "merge_method": "breadcrumbs",
    },
    "breadcrumbs_ties": BASE
    | {"models": models(**THREE), "parameters": {"density": 0.7, "gamma": 0.1}, "merge_method": "breadcrumbs_ties"},
    "della-dense": BASE | {"models": models(**THREE), "merge_method": "della"},
    "della_linear-dense": BASE | {"models": models(**THREE), "merge_method": "della_linear"},
    "slerp": {
        "slices": sliced({"base": {}, "one": {}}, {"base": {}, "one": {}}),
        "base_model": "base",
        "parameters": {"t": ATTENTION},
        "merge_method": "slerp",
    },
    "slerp-both-ends": {
        "slices": [
            {**part, "base_model": base, "parameters": {"t": t}}
            for part, base, t in zip(
                sliced({"one": {}, "two": {}}, {"two": {}, "one": {}}), ("one", "two"), (0.2, 0.4), strict=True
            )
        ],
        "merge_method": "slerp",
    },
    "nuslerp": {
        "models": models(one={"weight": 0.3}, two={"weight": ATTENTION}),
        "parameters": {"nuslerp_flatten": False},
        "merge_method": "nuslerp",
    },
    "nuslerp-based": BASE | {"models": models(one={"weight": 0.3}, two={"weight": 0.9}), "merge_method": "nuslerp"},
    "multislerp": {"models": models(**THREE), "merge_method": "multislerp"},
    "multislerp-based": BASE | {"models": models(**THREE), "merge_method": "multislerp"},
    "karcher": {"models": models(one={}, two={}, three={}), "merge_method": "karcher"},
    "karcher-based": BASE
    | {"models": models(one={}, two={}), "parameters": {"max_iter": 3}, "merge_method": "karcher"},
    "model_stock": BASE | {"models": models(one={}, two={}, three={}), "merge_method": "model_stock"},
    "sce": BASE
    | {"models": models(one={}, two={}, three={}), "parameters": {"select_topk": 0.6}, "merge_method": "sce"},
    "passthrough-scaled": {
        "models": models(one={"scale": [{"filter": "down_proj", "value": 0.5}, {"value": 1.0}]}),
        "merge_method": "passthrough",
    },
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llamas of four layers."""
    folder = tmp_path_factory.mktemp("zoo")
    save_family("llama", folder, experts=("one", "two", "three"), num_hidden_layers=4)
    return folder


@pytest.fixture(scope="module")
def theirs(zoo: Path, peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mergekit makes of every configuration, in one process: its start is what takes time."""
    folder = tmp_path_factory.mktemp("theirs")
    for name, config in (EXACT | NEAR).items():
        body = placed({"dtype": "float32", **config}, zoo)
        (folder / f"{name}.yml").write_text(yaml.safe_dump(body, sort_keys=False))
    peer("python", "-c", MERGE, folder)
    return folder


def placed(value: Any, zoo: Path) -> Any:
    """A configuration whose models are folders."""
    if isinstance(value, dict):
        return {key: placed(each, zoo) for key, each in value.items()}
    if isinstance(value, list):
        return [placed(each, zoo) for each in value]
    return str(zoo / value) if value in ("base", "one", "two", "three") else value


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def ours(name: str, theirs: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_from_mergekit(theirs / f"{name}.yml", to=recipe).text)
    write_checkpoint(recipe, tmp_path / "ours")
    return tensors_of(tmp_path / "ours")


@pytest.mark.parametrize("name", EXACT)
def test_to_the_bit(name: str, zoo: Path, theirs: Path, tmp_path: Path) -> None:
    made, wanted = ours(name, theirs, tmp_path), tensors_of(theirs / name)
    assert set(made) == set(wanted)
    assert [tensor for tensor in made if not torch.equal(made[tensor], wanted[tensor])] == []
    assert any(not torch.equal(made[tensor], each) for tensor, each in tensors_of(zoo / "base").items())


@pytest.mark.parametrize("name", NEAR)
def test_to_rounding(name: str, zoo: Path, theirs: Path, tmp_path: Path) -> None:
    made, wanted = ours(name, theirs, tmp_path), tensors_of(theirs / name)
    assert set(made) == set(wanted)
    for tensor, value in made.items():
        torch.testing.assert_close(value, wanted[tensor], rtol=1e-6, atol=1e-6, msg=tensor)
    assert any(not torch.allclose(made[tensor], each, atol=1e-4) for tensor, each in tensors_of(zoo / "base").items())


def test_what_stands_before_the_layers(peer: Peer) -> None:
    theirs = json.loads(peer("python", "-c", BEFORE_THE_LAYERS, *LAYOUTS))
    for name, (before, after) in theirs.items():
        assert all(any(part in tensor for part in _BEFORE) for tensor in before), name
        assert not any(part in tensor for tensor in after for part in _BEFORE), name
