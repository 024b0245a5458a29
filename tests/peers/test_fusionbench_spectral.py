"""Methods of signs and singular values against FusionBench's on a small random network: within 1e-5, on the CPU.

Where the two differ on purpose, it is said beside the test.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from optmerge.merging.methods import TensorKind
from tests.merging.methods.toy import ToyModels, random
from tests.peers.conftest import FUSIONBENCH, Peer
from tests.peers.merges import Job, Scripted, close, ours, scripted

pytestmark = pytest.mark.peers

EXPERTS = ("expert-0", "expert-1", "expert-2", "expert-3")
KINDS = {
    "embed.weight": TensorKind("embedding", False, (20, 8)),
    "patch.weight": TensorKind("embedding", False, (8, 3, 2, 2)),
    "patch.bias": TensorKind("embedding", False, (8,)),
    "up.weight": TensorKind("mlp", False, (18, 8)),
    "up.bias": TensorKind("mlp", False, (18,)),
    "down.weight": TensorKind("mlp", False, (8, 18)),
    "norm.weight": TensorKind("norm", False, (8,)),
    "norm.bias": TensorKind("norm", False, (8,)),
    "query.weight": TensorKind("attention", False, (8, 8)),
}

THEIRS = """
import importlib, json, sys, types
import fusion_bench, torch
from safetensors.torch import load_file, save_file
from torch import nn

def module(name):  # without what its parent packages import, some of which needs packages that are not here
    parts = name.split(".")
    for end in range(2, len(parts)):
        parent = ".".join(["fusion_bench", *parts[1:end]])
        if end > 2 and parent not in sys.modules:
            sys.modules[parent] = types.ModuleType(parent)
            sys.modules[parent].__path__ = ["/".join([fusion_bench.__path__[0], *parts[1:end]])]
    return importlib.import_module(name)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.patch = nn.Conv2d(3, 8, 2)
        self.up, self.down = nn.Linear(8, 18), nn.Linear(18, 8, bias=False)
        self.norm, self.query = nn.LayerNorm(8), nn.Linear(8, 8, bias=False)

def network(state):
    made = Network()
    made.load_state_dict(state)
    return made

folder, experts, jobs = sys.argv[1], *map(json.loads, sys.argv[2:])
base, *tuned = [load_file(f"{folder}/{name}.safetensors") for name in ["base", *experts]]
deltas = lambda: [{key: value - base[key] for key, value in state.items()} for state in tuned]
pool = lambda: fusion_bench.BaseModelPool(
    {"_pretrained_": network(base), **{name: network(state) for name, state in zip(experts, tuned)}}
)
iso = module("fusion_bench.method.isotropic_merging.iso")
tsv = module("fusion_bench.method.task_singular_vector.utils.TSVM_utils")
opcm = module("fusion_bench.method.opcm.opcm_general")
ties = module("fusion_bench.method.ties_merging.ties_merging_utils")

def merged(name, options):
    if name == "iso-c":
        return iso.ISO_C_Merge(1.0).run(pool()).state_dict()
    if name == "iso-cts":
        return iso.ISO_CTS_Merge(1.0, options["common"]).run(pool()).state_dict()
    if name == "tsv-m":
        scaled = [{key: alpha * value for key, value in tau.items()} for alpha, tau in zip(options["alpha"], deltas())]
        merge = tsv.compute_and_sum_svd_mem_reduction(scaled, accelerator="cpu")
        return {key: base[key] + value for key, value in merge.items()}
    if name == "opcm":
        method = opcm.OPCM(alpha=options["share"], shuffle_order=False, save_on_every_step=False)
        return method.run(pool()).state_dict()
    flat = torch.vstack([ties.state_dict_to_vector(tau) for tau in deltas()])
    share = (options["kept"] - 0.5) / flat.shape[1]  # it keeps one more than it says
    merge = ties.ties_merging(flat, reset_thresh=share, merge_func=options["merge"])
    merge = ties.vector_to_state_dict(merge, {key: value.clone() for key, value in base.items()})
    return {key: base[key] + value for key, value in merge.items()}

for number, (name, options) in enumerate(jobs):
    result = {key: value.detach().contiguous() for key, value in merged(name, options).items()}
    save_file(result, f"{folder}/theirs-{number}.safetensors")
"""


@pytest.fixture(scope="module")
def models() -> ToyModels:
    generator = torch.Generator().manual_seed(4)
    base = {name: random(generator, *kind.shape, dtype=torch.float32) for name, kind in KINDS.items()}
    experts = {
        expert: {
            name: value + 0.3 * random(generator, *value.shape, dtype=torch.float32) for name, value in base.items()
        }
        for expert in EXPERTS
    }
    return ToyModels(base, experts, kinds=KINDS)


ALPHA = [1.0, 0.5, 2.0, 1.5]
JOBS: list[Job] = [
    ("iso-c", {}),
    *(("iso-cts", {"common": common}) for common in (0.8, 0.5, 0.0, 1.0)),
    ("tsv-m", {"alpha": [1.0] * 4}),
    ("tsv-m", {"alpha": ALPHA}),
    *(("opcm", {"share": share}) for share in (0.5, 0.1, 0.9)),
    *(("ties", {"kept": kept, "merge": merge}) for kept in (160, 400) for merge in ("mean", "sum")),
]


@pytest.fixture(scope="module")
def theirs(run_in: Callable[[str], Peer], models: ToyModels, tmp_path_factory: pytest.TempPathFactory) -> Scripted:
    return scripted(run_in(FUSIONBENCH), tmp_path_factory.mktemp("fusionbench"), models, THEIRS, JOBS)


def mean(models: ToyModels, name: str) -> torch.Tensor:
    return torch.stack([models.expert(expert, name) for expert in EXPERTS]).mean(0)


def test_iso_c(models: ToyModels, theirs: Scripted) -> None:
    result, found = theirs("iso-c", {}), ours(models, "iso-c")
    # A convolution is a matrix [out, in * ...] here and gets the mean there, as everything does that is not 2-D.
    close(found, result, but=("patch.weight",))
    torch.testing.assert_close(result["patch.weight"], mean(models, "patch.weight"))
    assert not torch.allclose(found["patch.weight"], result["patch.weight"], atol=1e-2)


@pytest.mark.parametrize("common", [0.8, 0.5, 0.0, 1.0])
def test_iso_cts(models: ToyModels, theirs: Scripted, common: float) -> None:
    result = theirs("iso-cts", {"common": common})
    close(ours(models, "iso-cts", common=common), result, but=("patch.weight",))  # as in iso-c
    torch.testing.assert_close(result["patch.weight"], mean(models, "patch.weight"))


def test_tsv_m(models: ToyModels, theirs: Scripted) -> None:
    close(ours(models, "tsv-m"), theirs("tsv-m", {"alpha": [1.0] * 4}), but=("patch.weight",))  # as in iso-c
    weights = dict(zip(EXPERTS, ALPHA, strict=True))
    close(ours(models, "tsv-m", weights=weights), theirs("tsv-m", {"alpha": ALPHA}), but=("patch.weight",))


@pytest.mark.parametrize("share", [0.5, 0.1, 0.9])
def test_opcm(models: ToyModels, theirs: Scripted, share: float) -> None:
    # Embeddings and the first convolution, which counts as one, are added up in both. There any convolution is.
    close(ours(models, "opcm", share=share), theirs("opcm", {"share": share}))


@pytest.mark.parametrize("kept", [160, 400])
@pytest.mark.parametrize("merge", ["mean", "sum"])
def test_ties(models: ToyModels, theirs: Scripted, kept: int, merge: str) -> None:
    # There `sum` is the default. A sum of signs that is exactly 0 elects the majority there and nobody here, which
    # matters only where every expert's entry is trimmed or two cancel to the bit.
    size = sum(models.base(name).numel() for name in models.names)
    found = ours(models, "ties", density=kept / size, normalize=merge == "mean")
    close(found, theirs("ties", {"kept": kept, "merge": merge}))
