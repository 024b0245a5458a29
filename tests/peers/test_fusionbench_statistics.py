"""Fisher merging against FusionBench's on a small random network: within 1e-5, on the CPU.

FusionBench differentiates the sum over classes, and over the examples of a batch, before it squares; the Fisher
information is a sum of squares, with no cross terms. Of one example with two classes the two differ by a factor,
(sqrt(p) - sqrt(1 - p))^2, which its norm cancels: there they agree. It adds its floor where ours, like the paper's
code, takes the larger of the two. Both are compared where the floor is too small to be seen.

RegMean is compared beside RegMean++, in test_fusionbench_regmeanpp.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optmerge.calibration.batches import Batch
from optmerge.config.methods import Need
from optmerge.merging.gradient_statistics import collect_squares
from optmerge.runner.likelihoods import generator_for, predicted
from tests.merging.methods.toy import ToyModels
from tests.peers.conftest import FUSIONBENCH, Peer
from tests.peers.merges import ours

pytestmark = pytest.mark.peers

EXPERTS = ("expert-0", "expert-1", "expert-2")
FLOOR = 1e-12

NETWORK = """
import torch
from torch import nn
from types import SimpleNamespace

class Network(nn.Module):
    # A parameter of every shape; scores two classes for one sentence and one picture.
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.patch = nn.Conv2d(3, 6, 2)
        self.up, self.norm, self.head = nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 2, bias=False)

    def forward(self, ids, pixels):
        hidden = self.embed(ids).mean(1) + self.patch(pixels).mean((2, 3))
        return SimpleNamespace(logits=self.head(self.norm(torch.tanh(self.up(hidden)))))
"""

THEIRS = (
    """
import json, sys, types
from unittest.mock import MagicMock
for missing in ("joblib", "datasets"):
    sys.modules[missing] = types.ModuleType(missing)
    sys.modules[missing].__getattr__ = lambda name: MagicMock()
from fusion_bench.method.fisher_merging.fisher_merging import fisher_merging, merging_with_fisher_weights
from safetensors.torch import load_file, save_file
"""
    + NETWORK
    + """
folder, job = sys.argv[1], json.loads(sys.argv[2])
states = [load_file(f"{folder}/{name}.safetensors") for name in job["experts"]]
if job["given"]:
    fishers = [load_file(f"{folder}/{name}-fisher.safetensors") for name in job["experts"]]
    merged = merging_with_fisher_weights(
        {name: [state[name] for state in states] for name in states[0]},
        fishers, torch.tensor(job["weights"]), job["normalize"], job["floor"],
    )
else:
    class Trainer:
        _train_batch_size = 1
        def __init__(self, name):
            self.examples = [load_file(f"{folder}/{name}-inputs.safetensors")]
        def get_train_dataloader(self):
            return self.examples
        def _prepare_inputs(self, inputs):
            return inputs
    models = []
    for state in states:
        models.append(Network())
        models[-1].load_state_dict(state)
    merged = fisher_merging(
        models, [Trainer(name) for name in job["experts"]], [], [1] * len(models), job["weights"],
        job["normalize"], job["floor"],
    )
save_file({name: value.detach().contiguous() for name, value in merged.items()}, f"{folder}/merged.safetensors")
"""
)


def network() -> nn.Module:
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    model: nn.Module = made["Network"]()
    return model


def drawn(seed: int, like: Mapping[str, torch.Tensor], scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(value.shape, generator=generator) for name, value in like.items()}


@pytest.fixture
def models() -> ToyModels:
    """A base and experts that are far apart."""
    base = drawn(0, network().state_dict())
    experts = {}
    for number, name in enumerate(EXPERTS):
        noise = drawn(1 + number, base, 0.4)
        experts[name] = {key: value + noise[key] for key, value in base.items()}
    return ToyModels(base, experts)


def theirs(peer: Peer, folder: Path, models: ToyModels, **job: object) -> dict[str, torch.Tensor]:
    for expert in models.experts:
        save_file({name: models.expert(expert, name) for name in models.names}, folder / f"{expert}.safetensors")
    peer("python", "-c", THEIRS, str(folder), json.dumps({"experts": list(models.experts), **job}))
    return load_file(folder / "merged.safetensors")


@pytest.mark.parametrize("normalize", [True, False])
def test_means_weighed_by_the_same_information(
    normalize: bool, models: ToyModels, run_in: Callable[[str], Peer], tmp_path: Path
) -> None:
    statistics: dict[tuple[Need, str, str], torch.Tensor] = {}
    for number, expert in enumerate(models.experts):
        fisher = {name: (10.0**number * value) ** 2 for name, value in drawn(20 + number, models._base).items()}
        save_file(fisher, tmp_path / f"{expert}-fisher.safetensors")
        statistics |= {("fisher", expert, name): value for name, value in fisher.items()}
    models.statistics = statistics
    weights = dict(zip(EXPERTS, (0.5, 1.0, 2.0), strict=True))
    job = {"given": True, "weights": list(weights.values()), "normalize": normalize, "floor": FLOOR}
    result = theirs(run_in(FUSIONBENCH), tmp_path, models, **job)
    for name, value in ours(models, "fisher", weights=weights, normalize=normalize, floor=FLOOR).items():
        torch.testing.assert_close(value, result[name], rtol=0, atol=1e-5, msg=name)


def test_information_of_one_example_of_two_classes(
    models: ToyModels, run_in: Callable[[str], Peer], tmp_path: Path
) -> None:
    for number, expert in enumerate(models.experts):
        generator = torch.Generator().manual_seed(40 + number)
        inputs = {
            "ids": torch.randint(0, 12, (1, 5), generator=generator),
            "pixels": torch.randn(1, 3, 4, 4, generator=generator),
        }
        save_file(inputs, tmp_path / f"{expert}-inputs.safetensors")
        model = network()
        model.load_state_dict(models._experts[expert])
        model.requires_grad_(False)

        def losses(model: nn.Module = model, inputs: Mapping[str, torch.Tensor] = inputs) -> Iterator[Sequence[Any]]:
            yield predicted(model(**inputs).logits, Batch({}, torch.arange(1)), generator_for(0, "unused"))

        (found,) = collect_squares(dict(model.named_parameters()), losses)
        models.statistics = {
            **models.statistics,
            **{("fisher", expert, name): value for name, value in found.items()},
        }
    job = {"given": False, "weights": [1 / 3] * 3, "normalize": True, "floor": FLOOR}
    result = theirs(run_in(FUSIONBENCH), tmp_path, models, **job)
    moved = 0
    for name, value in ours(models, "fisher", floor=FLOOR).items():
        reached = torch.stack([models.statistics["fisher", expert, name] > 1e-7 for expert in EXPERTS]).any(0)
        torch.testing.assert_close(value[reached], result[name][reached], rtol=0, atol=1e-5, msg=name)
        mean = torch.stack([models.expert(expert, name) for expert in EXPERTS]).mean(0)
        moved += bool(((value - mean).abs() > 0.01).any())
    assert moved == len(models.names)
