"""WUDI and DOGE against FusionBench's on a small random network: within 1e-5, on the CPU.

Where the two differ on purpose, it is said beside the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from optmerge.merging.methods import TensorKind
from tests.merging.methods.toy import ToyModels, random
from tests.peers.conftest import FUSIONBENCH, Peer
from tests.peers.merges import Job, Scripted, close, ours, scripted

pytestmark = pytest.mark.peers

EXPERTS = ("expert-0", "expert-1", "expert-2")
KINDS = {
    "embed.weight": TensorKind("embedding", False, (20, 18)),
    "patch.weight": TensorKind("embedding", False, (18, 3, 2, 2)),
    "encoder.up.weight": TensorKind("mlp", False, (36, 18)),
    "encoder.up.bias": TensorKind("mlp", False, (36,)),
    "encoder.down.weight": TensorKind("mlp", False, (18, 36)),
    "encoder.query.weight": TensorKind("attention", False, (18, 18)),
    "encoder.layer_norm.weight": TensorKind("norm", False, (18,)),
    "encoder.layer_norm.bias": TensorKind("norm", False, (18,)),
}
MATRICES = ("encoder.up.weight", "encoder.down.weight", "encoder.query.weight")

THEIRS = """
import json, sys
import torch
from fusion_bench.method.doge_ta.doge_ta import DOGE_TA_Algorithm
from fusion_bench.method.wudi.wudi import wudi_merging
from safetensors.torch import load_file, save_file
from torch import nn

class Network(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.embed = nn.Embedding(20, 18)
        self.patch = nn.Conv2d(3, 18, 2, bias=False)
        self.encoder = nn.ModuleDict({
            "up": nn.Linear(18, 36), "down": nn.Linear(36, 18, bias=False),
            "query": nn.Linear(18, 18, bias=False), "layer_norm": nn.LayerNorm(18),
        })
        self.load_state_dict(state)

folder, experts, jobs = sys.argv[1], *map(json.loads, sys.argv[2:])
base, *tuned = [load_file(f"{folder}/{name}.safetensors") for name in ["base", *experts]]

def merged(name, options):
    if name == "doge":
        pool = {name: Network(state) for name, state in zip(["_pretrained_", *experts], [base, *tuned])}
        return DOGE_TA_Algorithm(**options).run(pool).state_dict()
    deltas = [{key: value - base[key] for key, value in state.items()} for state in tuned]
    merge = wudi_merging(deltas, accelerator="cpu", **options)
    return {key: base[key] + value for key, value in merge.items()}

for number, (name, options) in enumerate(jobs):
    result = {key: value.detach().contiguous() for key, value in merged(name, options).items()}
    save_file(result, f"{folder}/theirs-{number}.safetensors")
"""
JOBS: list[Job] = [
    ("wudi", {"iter_num": 300, "exclude_keys": ["embed.weight"]}),
    ("wudi", {"iter_num": 50}),
    ("doge", {"subspace": 6, "K": 30, "lamda": 0.07}),
    ("doge", {"subspace": 3, "K": 75, "lamda": 0.4}),
]


@pytest.fixture(scope="module")
def models() -> ToyModels:
    """Task vectors of the size of a fine-tuned model's, which the rates of both methods are made for."""
    generator = torch.Generator().manual_seed(4)
    base = {name: 0.1 * random(generator, *kind.shape, dtype=torch.float32) for name, kind in KINDS.items()}
    experts = {
        expert: {
            name: value + 0.02 * random(generator, *value.shape, dtype=torch.float32) for name, value in base.items()
        }
        for expert in EXPERTS
    }
    return ToyModels(base, experts, kinds=KINDS)


@pytest.fixture(scope="module")
def theirs(run_in: Callable[[str], Peer], models: ToyModels, tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    return scripted(run_in(FUSIONBENCH), tmp_path_factory.mktemp("fusionbench"), models, THEIRS, JOBS)


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def test_wudi(models: ToyModels, theirs: Scripted) -> None:
    result = theirs(*JOBS[0])
    mine = ours(models, "wudi")
    close(mine, result)
    summed = ours(models, "wudi", steps=0)
    assert all(apart(mine[name], summed[name]) > 1e-3 for name in MATRICES)  # the descent went somewhere


def test_wudi_of_embeddings(models: ToyModels, theirs: Scripted) -> None:
    """Without exclusions it descends in everything with two dimensions, and averages the rest.

    A convolution is a matrix here, as in the other methods of matrices, and no matrix there.
    """
    mine, result = ours(models, "wudi", steps=50, embeddings="matrix"), theirs(*JOBS[1])
    close(mine, result, but=("patch.weight",))
    torch.testing.assert_close(result["patch.weight"], ours(models, "average")["patch.weight"], rtol=0, atol=1e-5)
    assert apart(mine["patch.weight"], result["patch.weight"]) > 1e-3


@pytest.mark.parametrize("options", [options for name, options in JOBS if name == "doge"])
def test_doge(models: ToyModels, theirs: Scripted, options: Mapping[str, float]) -> None:
    """It says to keep K % of the matrices' entries and keeps one more, the threshold itself.

    Its matrices are the weights of an encoder that are no norms; everything else stays at the base, as here.
    """
    size = sum(models.base(name).numel() for name in MATRICES)
    density = (int(size * options["K"] / 100) + 1) / size
    settings: dict[str, object] = {"eta": options["lamda"], "subspace": options["subspace"], "density": density}
    mine = ours(models, "doge", **settings)
    close(mine, theirs("doge", options))
    still = ours(models, "doge", **settings, steps=0)
    assert all(apart(mine[name], still[name]) > 1e-4 for name in MATRICES)  # the descent went somewhere
