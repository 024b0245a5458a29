"""Models over several devices: every tensor is where the layout says, and what modules are given comes to them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from optmerge.errors import ConfigError, MissingExtraError
from optmerge.models.family import Family, open_family
from optmerge.models.layout_plan import plan_layout, shared_out
from optmerge.models.resident import ResidentModel
from optmerge.models.spread import Spread
from tests import tiny as made
from tests.tiny import TinyFamily

CPU, META = torch.device("cpu"), torch.device("meta")
Tiny = Callable[[str], TinyFamily]
PLENTY = 1 << 30


def opened(tiny: TinyFamily, heads: Literal["own", "merged"] = "merged") -> Family:
    experts = {name: str(folder) for name, folder in tiny.experts.items()}
    return open_family(str(tiny.base), experts, relative_to=Path(), heads=heads, check_values=False)


def tokens() -> dict[str, torch.Tensor]:
    ids = torch.randint(6, 64, (3, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def test_the_longest_prefix_counts() -> None:
    spread = Spread((CPU, META, META), {"a": 1, "a.b": 2, "a.b.c.weight": 0})
    names = ["a.weight", "a.b.weight", "a.b.c.weight", "a.b.c.bias", "ab.weight"]
    assert [spread.number_of(name) for name in names] == [1, 2, 0, 2, 0]
    assert [spread.knows(name) for name in names] == [True, True, True, True, False]
    assert spread.parts({name: None for name in names[:2]}) == [{"a.weight": None}, {"a.b.weight": None}]


def test_one_device_has_everything() -> None:
    spread = Spread.on(META)
    assert spread.device_of("anything") == META
    assert spread.knows("anything")
    assert Spread.of(spread) is spread
    model = nn.Linear(2, 2)
    spread.carry([model])
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "bert", "distilbert", "t5", "gpt2", "mixtral", "vit"])
@pytest.mark.parametrize("way", ["auto", "balanced", "sequential"])
def test_layers_are_whole_and_tied_tensors_together(
    kind: str, way: Literal["auto", "balanced", "sequential"], tiny: Tiny
) -> None:
    family = opened(tiny(kind), "own" if "bert" in kind else "merged")
    size = sum(4 * parameter.numel for parameter in family.parameters.values())
    room = [int(0.8 * size), PLENTY]  # of two layers all would fit on one device
    spread = Spread((CPU, CPU), plan_layout(family, torch.float32, way, room=room))
    assert spread.number_of(next(iter(family.parameters))) == 0
    parts = spread.parts(family.parameters)
    assert len(parts) == 2
    assert 4 * sum(parameter.numel for parameter in parts[0].values()) <= room[0]
    layers: dict[Any, set[int]] = {}
    for name, parameter in family.parameters.items():
        if parameter.role.layer is not None:
            layers.setdefault((parameter.role.part, parameter.role.layer), set()).add(spread.number_of(name))
    assert all(len(numbers) == 1 for numbers in layers.values())
    model = ResidentModel(family, device=spread, dtype=torch.float32).model_for("one")
    numbers: dict[int, set[int]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        numbers.setdefault(id(value), set()).add(spread.number_of(name))
    assert all(len(found) == 1 for found in numbers.values())


def test_an_embedding_that_is_most_of_a_model_is_on_the_first_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, architecture, values = made.KINDS["llama-tied"]
    monkeypatch.setitem(made.KINDS, "wide", (config, architecture, values | {"vocab_size": 2048}))
    family = opened(made.save_family("wide", tmp_path))
    layout = plan_layout(family, torch.float32, "balanced", room=[PLENTY] * 4)
    assert layout["model.embed_tokens"] == layout["lm_head"] == 0
    assert (layout["model.layers.0"], layout["model.layers.1"], layout["model.norm"]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("sizes", "room", "evenly", "expected"),
    [
        ([1] * 9, [9] * 4, True, [0, 0, 0, 1, 1, 2, 2, 3, 3]),
        ([3, 1, 1, 1], [9, 1, 9], True, [0, 1, 2, 2]),
        ([3, 1, 1, 1], [4, 1, 1], False, [0, 0, 1, 2]),
        ([3, 1, 1, 1], [3, 2, 1], True, [0, 1, 1, 2]),
        ([3, 2, 1, 1], [3, 1, 9], True, [0, 2, 2, 2]),
        ([3, 1, 1, 1], [3, 1, 1], True, None),
    ],
)
def test_pieces_are_shared_out_in_their_order(
    sizes: list[int], room: list[int], evenly: bool, expected: list[int] | None
) -> None:
    assert shared_out(sizes, room, evenly=evenly) == expected


def test_every_parameter_and_buffer_is_allocated_where_it_belongs(tiny: Tiny) -> None:
    family = opened(tiny("llama"))
    layout = {"model.embed_tokens": 0, "model.layers.0": 0, "": 1}
    resident = ResidentModel(family, device=Spread((CPU, META), layout), dtype=torch.float32)
    here = {name for name, value in resident.parameters.items() if value.device == CPU}
    assert here == {n for n in family.parameters if n.startswith(("model.embed_tokens.", "model.layers.0."))}
    assert torch.equal(
        resident.parameters["model.embed_tokens.weight"], family.read("base", "model.embed_tokens.weight")
    )
    buffers = dict(resident.model_for("base").named_buffers())
    assert buffers["model.rotary_emb.inv_freq"].device == META


@pytest.mark.parametrize(("kind", "heads"), [("llama", "merged"), ("bert", "own"), ("gpt2", "merged")])
def test_what_a_layer_is_given_is_on_its_device(kind: str, heads: Any, tiny: Tiny) -> None:
    """The second half is on the meta device, which nothing leaves but by an error at the very end."""
    family = opened(tiny(kind), heads)
    spread = Spread((CPU, META), plan_layout(family, torch.float32, "balanced", room=[PLENTY, PLENTY]))
    model = ResidentModel(family, device=spread, dtype=torch.float32).model_for("one")
    given: dict[str, set[torch.device]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
            tensors = [value for value in (*arguments, *named.values()) if isinstance(value, torch.Tensor)]
            given[name] = {value.device for value in tensors}

        return hook

    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(watch(name), with_kwargs=True)
    with torch.no_grad(), pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        model(**tokens())
    owned = {name: {value.device for value in model.get_submodule(name).parameters(recurse=False)} for name in given}
    assert given == owned
    assert {META} in owned.values()


@pytest.mark.parametrize(("kind", "heads"), [("llama-tied", "merged"), ("bert", "own"), ("mixtral", "merged")])
def test_hooks_change_no_value(kind: str, heads: Any, tiny: Tiny) -> None:
    family = opened(tiny(kind), heads)
    whole = ResidentModel(family, device=CPU, dtype=torch.float32)
    layout = plan_layout(family, torch.float32, "balanced", room=[PLENTY, PLENTY])
    spread = ResidentModel(family, device=Spread((CPU, CPU), layout), dtype=torch.float32)
    for expert in family.experts:
        with torch.no_grad():
            expected, found = (each.model_for(expert)(**tokens()).logits for each in (whole, spread))
        assert torch.equal(found, expected)


def test_experts_with_own_heads_share_a_body_that_is_hooked_once(tiny: Tiny) -> None:
    family = opened(tiny("bert"), "own")
    layout = plan_layout(family, torch.float32, "balanced", room=[PLENTY, PLENTY])
    resident = ResidentModel(family, device=Spread((CPU, CPU), layout), dtype=torch.float32)
    one, two = resident.model_for("one"), resident.model_for("two")
    assert one.bert is two.bert
    assert len(one.get_submodule("bert.encoder.layer.0")._forward_pre_hooks) == 1
    heads = [model.get_submodule("classifier") for model in (one, two)]
    assert [len(head._forward_pre_hooks) for head in heads] == [1, 1]


@pytest.mark.parametrize(
    ("kind", "layout", "why"),
    [
        ("llama", {"model.embed_tokens": 0, "model.layerz": 1}, "names 'model.layerz', and .* Did you mean 'model.lay"),
        ("llama", {"model.embed_tokens": 0, "model.layers": 1}, "does not say where model.norm.weight .* and 1 more"),
        ("llama", {"model.embed_tokens": 1, "": 0}, "puts model.embed_tokens.weight, .* on device 1; it must be on"),
        ("llama-tied", {"lm_head": 1, "": 0}, "puts .*weight on [01] and .*weight on [01], and .* they are one tensor"),
        ("llama", {"model.layers.0.mlp": 1, "": 0}, "takes model.layers.0 of LlamaForCausalLM apart"),
    ],
)
def test_layouts_that_cannot_be(kind: str, layout: dict[str, int], why: str, tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=why):
        plan_layout(opened(tiny(kind)), torch.float32, layout, room=[PLENTY, PLENTY])


def test_a_model_that_fits_nowhere_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"do not fit on its 2 devices, .*executor\.gpus_per_worker"):
        plan_layout(opened(tiny("llama")), torch.float32, "balanced", room=[9000, 9000])


def test_without_accelerate(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'optmerge\[spread\]'"):
        plan_layout(opened(tiny("llama")), torch.float32, "auto", room=[PLENTY, PLENTY])
