"""Outputs of single layers against transformers' own record of all hidden states."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from optmerge.errors import ModelError
from optmerge.models.checkpointing import Checkpointing
from optmerge.models.hidden import layer_outputs
from optmerge.models.roles import decoder_layers, layer_modules
from tests.tiny import make_model

IDS = torch.arange(24).view(2, 12).remainder(60)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama-tied", "qwen2", "mixtral"])
def test_they_are_the_hidden_states(kind: str) -> None:
    model = make_model(kind)
    modules = layer_modules(model)
    count = model.config.num_hidden_layers
    assert len(modules) == count
    with torch.no_grad(), layer_outputs(modules, range(count)) as caught:
        states = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert sorted(caught) == list(range(count))
    for layer in range(count - 1):  # beyond the last layer, some models' record has been through the final norm
        assert torch.equal(caught[layer], states[layer + 1])
    assert caught[count - 1].shape == states[count].shape
    with torch.no_grad():
        model(input_ids=IDS)
    assert torch.equal(caught[0], states[1]), "nothing is caught outside the block"


def test_only_layers_that_are_asked_for_are_caught() -> None:
    model = make_model("bert")
    with torch.no_grad(), layer_outputs(layer_modules(model), [1]) as caught:
        model(input_ids=IDS)
    assert list(caught) == [1]


@pytest.mark.parametrize("kind", ["bert", "llama-tied"])
def test_gradients_flow_through_them_under_checkpointing_too(kind: str) -> None:
    model = make_model(kind)
    weight = model.get_input_embeddings().weight

    def gradient() -> torch.Tensor:
        with layer_outputs(layer_modules(model), [0, 1]) as caught:
            model(input_ids=IDS, use_cache=False)
        (found,) = torch.autograd.grad(caught[0].square().sum() + caught[1].sum(), weight)
        return found

    plain = gradient()
    assert float(plain.abs().max()) > 0
    with Checkpointing([model]):
        assert torch.equal(gradient(), plain)


def test_a_layer_that_gives_something_else_is_told() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    told = r"Layer 0 \(Linear\) gives a tensor of shape \[2, 3\]"
    with pytest.raises(ModelError, match=told), layer_outputs(list(model), [0]):
        model(torch.ones(2, 3))


def test_layers_of_a_decoder_that_has_an_encoder_come_last() -> None:
    with torch.device("meta"):
        both = T5ForConditionalGeneration(T5Config(num_layers=2, num_decoder_layers=3, d_model=8, d_kv=4, num_heads=2))
    layers = layer_modules(both)
    assert len(layers) == 5
    assert decoder_layers(both, layers) == {2, 3, 4}
    alone = make_model("gpt2")
    assert decoder_layers(alone, layer_modules(alone)) == frozenset()
