"""Model Stock and SLERP against FusionBench's on a small random network: within 1e-5, on the CPU.

FusionBench averages the angles of Model Stock's pairs, and extrapolates where their mean is obtuse; it is acute here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.merging.methods.toy import ToyModels, random
from tests.peers.conftest import FUSIONBENCH, Peer
from tests.peers.merges import ours

pytestmark = pytest.mark.peers

SHAPES = {"0.weight": (18, 8), "0.bias": (18,), "1.weight": (18,), "1.bias": (18,), "2.weight": (6, 18)}

THEIRS = """
import importlib, sys, types
import fusion_bench
from safetensors.torch import load_file, save_file
from torch import nn

def module(name):  # without what its parent packages import, some of which needs packages that are not here
    parts = name.split(".")
    for end in range(3, len(parts)):
        parent = ".".join(parts[:end])
        sys.modules[parent] = types.ModuleType(parent)
        sys.modules[parent].__path__ = ["/".join([fusion_bench.__path__[0], *parts[1:end]])]
    return importlib.import_module(name)

def network(state):
    made = nn.Sequential(nn.Linear(8, 18), nn.LayerNorm(18), nn.Linear(18, 6, bias=False))
    made.load_state_dict(state)
    return made

fusion_bench.LazyStateDict = type("LazyStateDict", (), {})  # the real one needs accelerate, and no model here is lazy
folder, *names = sys.argv[1:]
states = {name: load_file(f"{folder}/{name}.safetensors") for name in names}
stock = module("fusion_bench.method.model_stock.model_stock")
slerp = module("fusion_bench.method.slerp.slerp_utils").slerp
for count in (2, 3):
    models = {"_pretrained_": network(states["base"])}
    models |= {name: network(state) for name, state in list(states.items())[1 : 1 + count]}
    merged = stock.ModelStock().run(fusion_bench.BaseModelPool(models))
    save_file(merged.state_dict(), f"{folder}/stock-{count}.safetensors")
one, two = (states[name] for name in names[1:3])
save_file({key: slerp(0.3, one[key], two[key]) for key in one}, f"{folder}/slerp.safetensors")
"""


def test_model_stock_and_slerp(run_in: Callable[[str], Peer], tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    base = {name: random(generator, *shape, dtype=torch.float32) for name, shape in SHAPES.items()}
    experts = {
        f"expert-{number}": {
            name: value + 0.5 + 0.4 * random(generator, *value.shape, dtype=torch.float32)
            for name, value in base.items()
        }
        for number in range(3)
    }
    for name, state in {"base": base, **experts}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    run_in(FUSIONBENCH)("python", "-c", THEIRS, tmp_path, "base", *experts)

    def same(found: dict[str, torch.Tensor], file: str) -> None:
        theirs = load_file(tmp_path / file)
        for name, value in found.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)

    pair = ToyModels(base, {name: experts[name] for name in ("expert-0", "expert-1")})
    whole = ToyModels(base, experts)
    same(ours(pair, "model_stock", average="angle"), "stock-2.safetensors")
    same(ours(whole, "model_stock", average="angle"), "stock-3.safetensors")
    same(ours(pair, "slerp", t=0.3), "slerp.safetensors")
    by_cosine = ours(whole, "model_stock")
    theirs = load_file(tmp_path / "stock-3.safetensors")
    assert any(not torch.allclose(value, theirs[name], rtol=0, atol=1e-4) for name, value in by_cosine.items())
