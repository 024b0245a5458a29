"""Tensors taken as they are, by name and by role."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from optmerge.config.methods import PassthroughConfig
from optmerge.errors import ConfigError
from optmerge.export.api import merge
from optmerge.merging.methods import build_method
from tests.export.families import opened
from tests.merging.methods.toy import every_kind, prepared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_tensor_is_that_of_the_last_pattern_that_matches(dtype: torch.dtype) -> None:
    models = every_kind(3, dtype=dtype)
    take = {"attention.*": "expert-1", "embedding": "base", "position": "expert-2", "*.bias": "expert-0"}
    method = prepared(PassthroughConfig(expert="expert-2", take=take), models)
    expected = {
        "embed.weight": "base",
        "position": "expert-2",
        "attention.weight": "expert-1",
        "attention.bias": "expert-0",
        "patch.weight": "base",
    }
    for name in models.names:
        source = expected.get(name, "expert-2")
        whole = models.base(name) if source == "base" else models.expert(source, name)
        assert torch.equal(method.delta(models, name), whole.to(method.delta(models, name).dtype) - models.base(name))
        for expert, part in zip(models.experts, method.expert_deltas(models, name), strict=True):
            assert torch.equal(part, method.delta(models, name) if expert == source else torch.zeros_like(part))


def test_the_first_expert_by_default_and_the_frozen_base() -> None:
    models = every_kind(2)
    first = build_method(PassthroughConfig(), models.experts)
    frozen = build_method(PassthroughConfig(expert="base"), models.experts)
    for name in models.names:
        assert torch.equal(first.delta(models, name), models.task_vector("expert-0", name))
        assert not frozen.delta(models, name).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert": "laww"}, r"passthrough.expert is 'laww'.*base, or one of law, code\. Did you mean 'law'"),
        ({"take": {"mlp": "cod"}}, r"passthrough.take.mlp is 'cod'.*Did you mean 'code'"),
    ],
)
def test_unknown_experts(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(PassthroughConfig.model_validate(settings), ["law", "code"])


def test_a_pattern_that_matches_nothing() -> None:
    models = every_kind(2)
    method = build_method(PassthroughConfig(take={"mpl": "base"}), models.experts)
    with pytest.raises(ConfigError, match=r"passthrough.take.mpl matches no parameter.*Did you mean 'mlp'"):
        method.prepare(models)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_recipe_takes_layers_of_different_experts(tmp_path: Path, dtype: str) -> None:
    family = opened("llama", tmp_path, dtype=getattr(torch, dtype))
    take = {"model.layers.1.*": "two", "head": "two", "norm": "base"}
    recipe = {
        "optmerge_recipe": 1,
        "base": "base",
        "experts": {name: name for name in family.experts},
        "directions": [{"name": "stitched", "method": {"name": "passthrough", "expert": "one", "take": take}}],
        "coefficients": {"stitched": 1.0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    merged = merge(tmp_path / "recipe.yaml")
    sources = set()
    for name, parameter in family.parameters.items():
        in_second = name.startswith("model.layers.1.") or parameter.role.kind == "head"
        source = "base" if parameter.role.kind == "norm" else "two" if in_second else "one"
        sources.add(source)
        # Of fp32 the sum of base and difference may be the neighbour; differences of bf16 are exact in fp32.
        torch.testing.assert_close(
            merged[name], family.read(source, name), rtol=0 if dtype == "bfloat16" else 2e-7, atol=1e-8
        )
    assert sources == {"one", "two", "base"}
