"""Whole checkpoints: what `optmerge merge` writes beside what mergekit-yaml writes of the same models.

Task arithmetic is bit-identical on every architecture, in fp32 and, summed in fp32, from and to bf16. Every other
method that both have is within 1e-6 on GPT-2, which has input-first matrices, biases, norms and embeddings. mergekit's
start takes longer than all its merges, so they are made by one process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file

from optmerge.cli import main
from tests.export.families import saved
from tests.peers.conftest import Peer

pytestmark = pytest.mark.peers

Both = Callable[[str], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]

ARCHITECTURES = (
    *("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "phi", "phi3"),
    *("stablelm", "starcoder2", "olmo2", "gpt2", "t5-gated", "bert-merged", "roberta"),
)
DTYPES = ("float32", "bfloat16")
WEIGHTS = {"one": 0.4, "two": -0.7, "three": 0.35}
POSITIVE = {"one": 0.4, "two": 1.5, "three": 0.7}

THEIRS = """
import json, sys
from mergekit.scripts.run_yaml import main
for folder in json.load(open(sys.argv[1])):
    main([folder + "/mergekit.yaml", folder + "/theirs"], standalone_mode=False)
"""


class Case(NamedTuple):
    """One merge, as both call it.

    Attributes:
        ours: Settings of the method.
        theirs: mergekit's settings of the whole merge.
        experts: Whose models are merged.
        weights: mergekit's weight per expert; None where the method has none.
        base: What mergekit is given as its base; None = nothing.
    """

    ours: dict[str, Any]
    theirs: dict[str, Any]
    experts: tuple[str, ...] = ("one", "two", "three")
    weights: Mapping[str, float] | None = None
    base: str | None = "base"


def mergekit(method: str, **parameters: Any) -> dict[str, Any]:
    return {"merge_method": method, "parameters": parameters}


def ours(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, **settings}


PAIR = ("one", "two")
PAIR_WEIGHTS = {"one": 0.6, "two": 1.4}  # t = 0.7
EXACT = {"compat": "mergekit"}
CASES = {
    "linear": Case(ours("linear", weights=POSITIVE), mergekit("linear"), weights=POSITIVE, base=None),
    "linear-sum": Case(
        ours("linear", weights=WEIGHTS, normalize=False),
        mergekit("linear", normalize=False),
        weights=WEIGHTS,
        base=None,
    ),
    "slerp": Case(ours("slerp", t=0.3, **EXACT), mergekit("slerp", t=0.3), experts=("one",)),
    "slerp-of-experts": Case(ours("slerp", t=0.3, **EXACT), mergekit("slerp", t=0.3), experts=PAIR, base="one"),
    **{
        f"nuslerp-{scope}-{origin}": Case(
            ours("nuslerp", t=0.7, scope=scope, origin=origin, **EXACT),
            mergekit("nuslerp", nuslerp_flatten=scope == "tensor", nuslerp_row_wise=scope == "column"),
            experts=PAIR,
            weights=PAIR_WEIGHTS,
            base="base" if origin == "base" else None,
        )
        for scope in ("tensor", "row", "column")
        for origin in ("base", "zero")
    },
    **{
        f"multislerp-{origin}": Case(
            ours("multislerp", weights=POSITIVE, origin=origin, **EXACT),
            mergekit("multislerp"),
            weights=POSITIVE,
            base="base" if origin == "base" else None,
        )
        for origin in ("base", "zero")
    },
    "karcher": Case(ours("karcher", **EXACT), mergekit("karcher"), base=None),
    "karcher-converged": Case(ours("karcher"), mergekit("karcher", max_iter=100, tol=1e-6), base=None),
    **{
        f"ties-{density}": Case(
            ours("ties", density=density, weights=POSITIVE, **EXACT),
            mergekit("ties", density=density, normalize=True),
            weights=POSITIVE,
        )
        for density in (0.2, 0.6)
    },
    "breadcrumbs": Case(
        ours("breadcrumbs", density=0.5, outliers=0.05, weights=WEIGHTS, **EXACT),
        mergekit("breadcrumbs", density=0.5, gamma=0.05, normalize=False),
        weights=WEIGHTS,
    ),
    "breadcrumbs-ties": Case(
        ours("breadcrumbs-ties", density=0.5, outliers=0.05, weights=POSITIVE, **EXACT),
        mergekit("breadcrumbs_ties", density=0.5, gamma=0.05, normalize=False),
        weights=POSITIVE,
    ),
    **{
        f"sce-{density}": Case(ours("sce", density=density, **EXACT), mergekit("sce", select_topk=density))
        for density in (0.3, 1.0)
    },
    "dare-ties-without-a-drop": Case(
        ours("dare-ties", drop=0.0, weights=POSITIVE, **EXACT), mergekit("dare_ties", density=1.0), weights=POSITIVE
    ),
    **{
        f"model-stock-{scope}": Case(
            ours("model_stock", scope=scope, **EXACT), mergekit("model_stock", filter_wise=scope == "row")
        )
        for scope in ("tensor", "row")
    },
    "passthrough": Case(ours("passthrough", expert="one"), mergekit("passthrough"), experts=("one",), base=None),
}


def recipe(models: Path, experts: tuple[str, ...], dtype: str, **rest: Any) -> dict[str, Any]:
    folders = {name: str(models / name) for name in experts}
    return {"optmerge_recipe": 1, "base": str(models / "base"), "experts": folders, "dtype": dtype, **rest}


def config(models: Path, case: Case, dtype: str) -> dict[str, Any]:
    listed = [
        {"model": str(models / name)} | ({"parameters": {"weight": case.weights[name]}} if case.weights else {})
        for name in case.experts
        if name != case.base
    ]
    base = {"base_model": str(models / case.base)} if case.base else {}
    return {**case.theirs, **base, "models": listed, "dtype": "float32", "out_dtype": dtype}


@pytest.fixture(scope="module")
def merges(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per merge, with our recipe and what mergekit made."""
    root = tmp_path_factory.mktemp("merges")
    folders = []

    def job(name: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        folder = root / name
        folder.mkdir()
        (folder / "mergekit.yaml").write_text(yaml.safe_dump(theirs, sort_keys=False))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(ours, sort_keys=False))
        folders.append(str(folder))

    for kind in ARCHITECTURES:
        for dtype in DTYPES:
            models = root / "models" / f"{kind}-{dtype}"
            saved(kind, models, experts=tuple(WEIGHTS), dtype=getattr(torch, dtype))
            case = Case({}, mergekit("task_arithmetic", normalize=False), weights=WEIGHTS)
            job(
                f"{kind}-{dtype}",
                config(models, case, dtype),
                recipe(models, case.experts, dtype, coefficients=WEIGHTS),
            )
    models = root / "models" / "gpt2-float32"
    for name, case in CASES.items():
        whole = {"directions": [{"name": "it", "method": case.ours}], "coefficients": {"it": 1.0}}
        job(name, config(models, case, "float32"), recipe(models, case.experts, "float32", **whole))
    (root / "jobs.json").write_text(json.dumps(folders))
    peer("python", "-c", THEIRS, root / "jobs.json")
    return root


@pytest.fixture
def both(merges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Both:
    """The tensors on disk of a merge: what `optmerge merge` makes of its recipe now, and what mergekit made."""

    def call(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        arguments = ["merge", merges / name / "recipe.yaml", "--to", tmp_path / "ours"]
        monkeypatch.setattr(sys, "argv", ["optmerge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        made, theirs = (tensors_of(folder) for folder in (tmp_path / "ours", merges / name / "theirs"))
        assert made
        assert {key: tensor.dtype for key, tensor in made.items()} == {key: t.dtype for key, t in theirs.items()}
        return made, theirs

    return call


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_task_arithmetic_to_the_bit(kind: str, dtype: str, merges: Path, both: Both) -> None:
    made, theirs = both(f"{kind}-{dtype}")
    assert [name for name, tensor in made.items() if not torch.equal(tensor, theirs[name])] == []
    start = tensors_of(merges / "models" / f"{kind}-{dtype}" / "base")
    assert not any(torch.equal(tensor, start[name]) for name, tensor in made.items())


@pytest.mark.parametrize("name", CASES)
def test_methods_within_a_millionth(name: str, both: Both) -> None:
    made, theirs = both(name)
    for tensor, value in made.items():
        torch.testing.assert_close(value, theirs[tensor], rtol=1e-6, atol=1e-6, msg=f"{tensor} differs")
