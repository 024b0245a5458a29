"""Adapters as directions of a search: what peft merges when they stand alone, the dense law when they are mixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from optmerge.config.methods import StarConfig
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import Engine
from optmerge.merging.methods import build_method
from optmerge.merging.models_view import FamilyModels
from optmerge.merging.recipe import Direction
from optmerge.merging.sources import LowRank
from optmerge.models.family import Family, open_family
from tests.models.peft_adapters import train
from tests.tiny import add_noise, make_model, save

# kind of model -> options of the first adapter, and of the second
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": (
        {"target_modules": ["q_proj", "down_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "r": 2, "use_rslora": True},
    ),
    "gpt2": ({"target_modules": ["c_attn", "c_proj"]}, {"target_modules": ["c_attn", "wte"], "r": 4}),
    "mixtral": (
        {"target_modules": ["o_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
        {"target_modules": [], "target_parameters": ["mlp.experts.down_proj", "mlp.gate.weight"], "r": 2},
    ),
}


class Setting:
    """A base with two adapters and a full expert, and a resident copy that starts as noise."""

    def __init__(self, kind: str, folder: Path, form: Literal["accumulate", "hooks"] = "accumulate") -> None:
        base = save(make_model(kind), folder / "base", kind)
        self.merged = {
            name: train(make_model(kind), folder / name, task_type="CAUSAL_LM", **options)
            for name, options in zip(("one", "two"), PAIRS[kind], strict=True)
        }
        full = save(add_noise(make_model(kind), seed=5), folder / "full", kind)
        references = {name: f"{base}+{folder / name}" for name in self.merged}
        self.family: Family = open_family(str(base), {**references, "full": str(full)}, relative_to=folder)
        directions = [Direction(name, "expert") for name in self.family.experts]
        self.deltas = Deltas(self.family, directions, cache=None)
        self.parameters = {
            name: nn.Parameter(torch.full(parameter.shape, 7.0)) for name, parameter in self.family.parameters.items()
        }
        self.group_of = {name: number % 3 for number, name in enumerate(self.parameters)}
        self.engine = Engine(self.parameters, self.deltas.segments, self.group_of, form=form)

    def dense(self, name: str) -> torch.Tensor:
        """[D, ...] deltas in fp64."""
        base = self.family.read("base", name).double()
        return torch.stack([self.family.read(expert, name).double() - base for expert in self.family.experts])


@pytest.mark.parametrize("kind", PAIRS)
def test_one_hot_is_what_peft_merges(kind: str, tmp_path: Path) -> None:
    setting = Setting(kind, tmp_path)
    for column, expert in enumerate(("one", "two")):
        table = np.zeros((3, 3))
        table[:, column] = 1.0
        setting.engine.apply(table)
        for name, parameter in setting.parameters.items():
            assert torch.equal(parameter.data, setting.merged[expert][name]), name


@pytest.mark.parametrize("kind", PAIRS)
def test_mixtures_follow_the_dense_law(kind: str, tmp_path: Path) -> None:
    setting = Setting(kind, tmp_path)
    table = np.array([[0.3, 0.5, 0.2], [1.0, 1.0, 0.0], [-0.4, 0.0, 0.9]])
    setting.engine.apply(table)
    low_rank = 0
    for name, parameter in setting.parameters.items():
        weights = torch.from_numpy(table[setting.group_of[name]])
        expected = setting.family.read("base", name).double() + torch.tensordot(weights, setting.dense(name), dims=1)
        torch.testing.assert_close(parameter.data.double(), expected, rtol=0, atol=1e-6)
        low_rank += any(isinstance(s, LowRank) for part in setting.deltas.segments(name) for s in part.sources)
    assert low_rank == {"llama": 5, "gpt2": 7, "mixtral": 8}[kind]  # parameters that stay factors


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
@pytest.mark.parametrize("kind", PAIRS)
def test_the_gradient_is_that_of_the_dense_law(kind: str, form: Literal["accumulate", "hooks"], tmp_path: Path) -> None:
    setting = Setting(kind, tmp_path, form)
    setting.engine.apply(np.full((3, 3), 0.3))
    generator = torch.Generator().manual_seed(2)
    slopes = {name: torch.randn(p.shape, generator=generator) for name, p in setting.parameters.items()}
    with setting.engine.gradient() as gradient:
        torch.stack([(slopes[name] * p).sum() for name, p in setting.parameters.items()]).sum().backward()
    expected = np.zeros((3, 3))
    for name, slope in slopes.items():
        products = (setting.dense(name) * slope.double()).flatten(1).sum(dim=1)
        expected[setting.group_of[name]] += products.numpy()
    np.testing.assert_allclose(gradient.table(), expected, rtol=1e-4, atol=1e-4)


def test_a_parameter_that_adapters_leave_alone_has_no_sources(tmp_path: Path) -> None:
    setting = Setting("llama", tmp_path)
    (segment,) = setting.deltas.segments("model.norm.weight")
    assert [source is None for source in segment.sources] == [True, True, False]
    assert setting.deltas.untouched()["one"] >= {"model.norm.weight", "lm_head.weight"}
    assert "lm_head.weight" not in setting.deltas.untouched()["two"]


@pytest.mark.parametrize("kind", PAIRS)
def test_methods_see_adapters_as_their_factors(kind: str, tmp_path: Path) -> None:
    setting = Setting(kind, tmp_path)
    models, seen = FamilyModels(setting.family), 0
    method = build_method(StarConfig(share=1.0, embeddings="matrix"), models.experts)
    for name in models.names:
        for number, expert in enumerate(models.experts):
            factors = models.factors(expert, name)
            if factors is not None:
                seen += 1
                assert expert != "full"
                product = factors.product(torch.float64)
                torch.testing.assert_close(product, setting.dense(name)[number], rtol=0, atol=1e-6)
        torch.testing.assert_close(  # with everything kept it is the mean
            method.delta(models, name).double(), setting.dense(name).mean(dim=0), rtol=0, atol=1e-5
        )
    assert seen == {"llama": 7, "gpt2": 9, "mixtral": 10}[kind]
