"""Activation checkpointing in evaluation mode: the same bits, layers run twice, nothing left behind."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from optmerge.errors import ConfigError
from optmerge.models.checkpointing import Checkpointing
from tests.tiny import make_model

KINDS = ["llama", "llama-tied", "qwen2", "mixtral", "gpt2", "bert", "vit"]


def inputs(kind: str) -> dict[str, torch.Tensor]:
    if kind == "vit":
        values = torch.linspace(-1, 1, 2 * 3 * 8 * 8)
        return {"pixel_values": values.reshape(2, 3, 8, 8)}
    return {"input_ids": torch.arange(18).remainder(60).reshape(2, 9)}


def backward(model: nn.Module, kind: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and every parameter's gradient."""
    model.zero_grad(set_to_none=True)
    logits = model(**inputs(kind)).logits
    logits.log_softmax(-1).square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_bit_equal_and_hooks_fire_once(kind: str) -> None:
    model = make_model(kind)
    plain, expected = backward(model, kind)
    fired: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.update([name]))
    with Checkpointing([model]):
        logits, gradients = backward(model, kind)
    assert torch.equal(logits, plain)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name
    assert fired == Counter(gradients.keys())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_layers_run_again_in_the_backward_pass_and_only_inside_the_block(kind: str) -> None:
    model = make_model(kind)
    calls: Counter[str] = Counter()
    inner = next(module for name, module in model.named_modules() if name.endswith(("mlp", "intermediate")))
    inner.register_forward_pre_hook(lambda *_: calls.update(["inner"]))  # it runs again up to its last saved tensor
    modes = [module.training for module in model.modules()]
    checkpointing = Checkpointing([model])
    for _ in range(2):  # it can be entered again
        calls.clear()
        with checkpointing:
            backward(model, kind)
            assert [module.training for module in model.modules()] == modes
        assert calls["inner"] == 2
    calls.clear()
    backward(model, kind)
    assert calls["inner"] == 1


def test_fewer_activations_are_kept() -> None:
    """Dropout is in the model, and stays off: its mask would be saved, and the values would differ."""
    model = make_model("bert", num_hidden_layers=6)
    assert model.config.hidden_dropout_prob > 0

    def saved(run: Checkpointing | None) -> int:
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if run is None:
                model(**inputs("bert"))
            else:
                with run:
                    model(**inputs("bert"))
        return kept

    assert saved(Checkpointing([model])) < saved(None) / 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_cache_is_left_out_rather_than_written_twice(kind: str) -> None:
    model = make_model(kind)
    assert model.config.use_cache
    plain = backward(model, kind)[1]
    with Checkpointing([model]):
        checked = backward(model, kind)[1]
    assert all(torch.equal(checked[name], value) for name, value in plain.items())


def test_the_block_is_left_in_order_after_an_exception() -> None:
    model = make_model("llama")
    with pytest.raises(ZeroDivisionError), Checkpointing([model, model]):
        raise ZeroDivisionError
    assert not any("forward" in vars(module) for module in model.modules())


def test_without_layers_to_checkpoint_the_user_is_told() -> None:
    with pytest.raises(ConfigError, match=r"cannot checkpoint any layer of Linear\. Set checkpointing: false"):
        Checkpointing([make_model("bert"), nn.Linear(2, 2)])
