"""Stepping through a model's layers: the same inputs as in a whole forward pass, of many architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from optmerge.errors import ModelError
from optmerge.merging.statistics import Inputs, collect_grams
from optmerge.merging.stepping import Course, Walk, follow
from optmerge.models.roles import layer_modules
from tests.tiny import make_model

CPU = torch.device("cpu")
SEQUENCE = {
    "vocab_size": 30,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 32,
}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 4, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
GEMMA = {
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}


def text(count: int = 3) -> list[Inputs]:
    """Padded batches of token ids."""
    generator = torch.Generator().manual_seed(3)
    made: list[Inputs] = []
    for _ in range(count):
        ids = torch.randint(6, 30, (2, 7), generator=generator)
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[1, 4:] = 0
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


def pairs() -> list[Inputs]:
    return [
        {
            **batch,
            "decoder_input_ids": batch["input_ids"][:, :5],
            "decoder_attention_mask": batch["attention_mask"][:, :5],
        }
        for batch in text()
    ]


def images(size: int) -> list[Inputs]:
    generator = torch.Generator().manual_seed(4)
    return [{"pixel_values": torch.randn(2, 3, size, size, generator=generator)} for _ in range(2)]


def fresh(model: type[Any], config: Any) -> nn.Module:
    """A model whose values are drawn from a generator of our own."""
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        made: nn.Module = model(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made.eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Inputs]]]] = {
    "bert": (partial(make_model, "bert"), text),
    "llama": (partial(make_model, "llama"), text),
    "gpt2": (partial(make_model, "gpt2"), text),
    "mixtral": (partial(make_model, "mixtral"), text),
    "t5": (partial(make_model, "t5"), pairs),
    "vit": (partial(make_model, "vit"), partial(images, 8)),
    "bart": (
        lambda: fresh(transformers.BartForConditionalGeneration, transformers.BartConfig(**SEQUENCE)),
        pairs,
    ),
    "swin": (
        lambda: fresh(transformers.SwinForImageClassification, transformers.SwinConfig(**SWIN)),
        partial(images, 16),
    ),
    "gemma3": (
        lambda: fresh(transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(**GEMMA)),
        text,
    ),
}


def run(model: nn.Module, inputs: Inputs) -> Any:
    options = {} if "pixel_values" in inputs else {"use_cache": False}
    return model(**inputs, **options) if type(model).__name__ != "BertForSequenceClassification" else model(**inputs)


@contextmanager
def seen_by(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a layer is given, batch by batch."""
    seen: list[torch.Tensor] = []

    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append((arguments[0] if arguments else named["hidden_states"]).clone())

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", MODELS)
def test_layers_that_change_when_they_are_behind_are_stepped_through_exactly(kind: str) -> None:
    """Each layer gets new values once its inputs are measured; the next sees what a whole pass would give it."""
    make, data = MODELS[kind]
    model, batches = make(), data()
    layers = layer_modules(model)
    course = follow(model, layers, dict(model.named_parameters()), lambda: run(model, batches[0]))
    assert sorted(course.order) == list(range(len(layers)))
    ordered = [layers[index] for index in course.order]
    walk = Walk(ordered, partial(run, model), device=CPU, ends=course.ends)
    generator = torch.Generator().manual_seed(8)
    for position, layer in enumerate(ordered):
        with torch.no_grad(), seen_by(layer) as expected:
            for batch in batches:
                run(model, batch)
        for _ in range(2):  # a pass may be repeated
            with walk.at(position) as step, seen_by(layer) as found:
                walk.rewind()
                for batch in batches:
                    step(batch)
            assert len(found) == len(expected) == len(batches)
            for ours, whole in zip(found, expected, strict=True):
                assert torch.equal(ours, whole)
        assert not any("forward" in vars(module) for module in model.modules())
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", MODELS)
def test_what_comes_after_the_layers_is_reached_with_what_they_give(kind: str) -> None:
    make, data = MODELS[kind]
    model, batches = make(), data()
    layers = layer_modules(model)
    course = follow(model, layers, dict(model.named_parameters()), lambda: run(model, batches[0]))
    walk = Walk([layers[index] for index in course.order], partial(run, model), device=CPU, ends=course.ends)
    for position in range(len(layers)):
        with walk.at(position) as step:
            for batch in batches:
                step(batch)
    with torch.no_grad():
        whole = [run(model, batch) for batch in batches]
    caught: list[Any] = []
    handle = model.register_forward_hook(lambda module, arguments, output: caught.append(output))
    with walk.at(len(layers)) as step:
        for batch in batches:
            step(batch)
    handle.remove()
    for ours, theirs in zip(caught, whole, strict=True):
        assert torch.equal(ours.logits, theirs.logits)


def test_each_layer_is_run_twice_in_all() -> None:
    model, batches = make_model("llama", num_hidden_layers=5), text()
    layers = layer_modules(model)
    walk = Walk(layers, partial(run, model), device=CPU)
    runs = [0] * len(layers)
    for index, layer in enumerate(layers):
        own = next(module for module in layer.modules() if isinstance(module, nn.Linear))
        own.register_forward_hook(lambda *_, index=index: runs.__setitem__(index, runs[index] + 1))
    for position in range(len(layers)):
        with walk.at(position) as step:
            for batch in batches:
                step(batch)
    assert runs == [2 * len(batches)] * 4 + [len(batches)]


@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2"])
def test_gram_matrices_of_a_stepped_layer_are_those_of_a_whole_pass(kind: str) -> None:
    """Padding is left out as it is there."""
    make, data = MODELS[kind]
    model, batches = make(), data()
    layers = layer_modules(model)
    course = follow(model, layers, dict(model.named_parameters()), lambda: run(model, batches[0]))
    everything = dict(model.named_parameters())
    (whole,) = collect_grams(model, everything, lambda: batches, partial(run, model))
    walk = Walk([layers[index] for index in course.order], partial(run, model), device=CPU, ends=course.ends)
    found: dict[str, torch.Tensor] = {}
    for position, index in enumerate(course.order):
        inside = {id(parameter) for parameter in layers[index].parameters()}
        own = {name: parameter for name, parameter in everything.items() if id(parameter) in inside}

        def again() -> list[Inputs]:
            walk.rewind()
            return batches

        with walk.at(position) as step:
            for part in collect_grams(model, own, again, step, budget=1):
                found |= part
    assert len(found) >= 2 * 4
    for name, gram in found.items():
        assert torch.equal(gram, whole[name]), name


def test_the_course_of_an_encoder_and_a_decoder() -> None:
    model = make_model("t5")
    layers = layer_modules(model)
    course = follow(model, layers, dict(model.named_parameters()), lambda: run(model, pairs()[0]))
    after = frozenset({"decoder.final_layer_norm.weight"})  # the output layer is tied to the embedding
    assert course == Course((0, 1, 2, 3), frozenset({1}), after)


class Stack(nn.Module):
    """Layers of which the last reads what the one at ``also`` gave."""

    def __init__(self, also: int | None = None, *, twice: bool = False, odd: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.also, self.twice, self.odd = also, twice, odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: list[torch.Tensor] = []
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            if last and self.odd and x.shape[0] == 1:
                return x
            x = layer(x + given[self.also]) if last and self.also is not None else layer(x)
            x = layer(x) if last and self.twice else x
            given.append(x)
        return x


def step_through(model: Stack, batches: list[torch.Tensor]) -> None:
    course = follow(model, list(model.layers), dict(model.named_parameters()), lambda: model(batches[0]))
    walk = Walk([model.layers[index] for index in course.order], lambda batch: model(batch["x"]), device=CPU)
    for position in range(len(model.layers)):
        with walk.at(position) as step:
            for batch in batches:
                step({"x": batch})


def test_a_layer_that_reads_more_than_its_predecessor_is_refused() -> None:
    step_through(Stack(), [torch.ones(2, 3)])
    step_through(Stack(also=2), [torch.ones(2, 3)])  # its predecessor
    model = Stack(also=0)
    with pytest.raises(
        ModelError, match=r"at layer 3 \(Linear\).*reads more than what the layer before it gave.*Use reg"
    ):
        step_through(model, [torch.ones(2, 3)])
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())


def test_layers_that_are_run_twice_or_not_at_all_are_refused() -> None:
    with pytest.raises(ModelError, match=r"Stack cannot be merged layer by layer: one of its layers is run more than"):
        step_through(Stack(twice=True), [torch.ones(2, 3)])
    albert = transformers.AlbertConfig(
        vocab_size=30, embedding_size=4, hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8
    )
    model = fresh(transformers.AlbertModel, albert)
    with pytest.raises(ModelError, match="AlbertModel cannot be merged layer by layer: one of its layers is run more"):
        follow(model, layer_modules(model), {}, lambda: run(model, {"input_ids": text()[0]["input_ids"]}))
    with pytest.raises(ModelError, match="Linear cannot be merged layer by layer: none of its layers is run"):
        follow(nn.Linear(2, 2), [], {}, lambda: None)


def test_a_batch_that_goes_another_way_is_refused() -> None:
    with pytest.raises(ModelError, match="Batch 1 does not go through the model's layers in the order"):
        step_through(Stack(odd=True), [torch.ones(2, 3), torch.ones(1, 3)])
