"""Tensors taken as they are, by name and by role."""

from __future__ import annotations

import pytest
import torch

from optmerge.config.methods import PassthroughConfig
from optmerge.errors import ConfigError
from optmerge.merging.methods import build_method
from tests.merging.methods.toy import every_kind


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_each_tensor_is_that_of_the_last_pattern_that_matches(dtype: torch.dtype) -> None:
    models = every_kind(3, dtype=dtype)
    take = {"attention.*": "expert-1", "embedding": "base", "position": "expert-2", "*.bias": "expert-0"}
    method = build_method(PassthroughConfig(expert="expert-2", take=take), models.experts)
    method.prepare(models)
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
