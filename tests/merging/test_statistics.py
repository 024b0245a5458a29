"""Gram matrices against X^T X of inputs written down by hand: padding, shared and tied layers, several passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from optmerge.merging.statistics import collect_grams, linear_layers
from tests.tiny import make_model

Inputs = Mapping[str, torch.Tensor]
LENGTHS = (5, 3, 4)


class Toy(nn.Module):
    """Per-token layers, one of them called twice, and one that sees the first token of each example only."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Linear(4, 6)
        self.second = Conv1D(4, 6)  # [in, out] = [6, 4]
        self.pooler = nn.Linear(4, 2)
        self.idle = nn.Linear(4, 2)
        self.norm = nn.LayerNorm(4)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        self.seen: dict[str, list[torch.Tensor]] = {"first": [], "second": [], "pooler": []}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            self.seen["first"].append(x)
            hidden = self.first(x)
            self.seen["second"].append(hidden)
            x = self.norm(self.second(hidden))
        self.seen["pooler"].append(x[:, 0])
        return self.pooler(x[:, 0])


def batches(dtype: torch.dtype = torch.float32) -> list[Inputs]:
    """Two batches of padded inputs; what is padding is NaN, so that nothing of it may count."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for lengths in (LENGTHS, LENGTHS[:2]):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        x = torch.randn(len(lengths), max(lengths), 4, generator=generator).to(dtype)
        x[~mask] = torch.nan
        made.append({"x": x, "attention_mask": mask.long()})
    return made


def collect(model: nn.Module, data: Iterable[Inputs], **options: int) -> dict[str, torch.Tensor]:
    kept = list(data)
    parts = collect_grams(
        model, dict(model.named_parameters()), lambda: kept, lambda inputs: model(inputs["x"]), **options
    )
    return {name: gram for part in parts for name, gram in part.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gram_is_the_mean_over_real_tokens_in_fp32(dtype: torch.dtype) -> None:
    model, data = Toy().to(dtype), batches(dtype)
    found = collect(model, data)
    assert set(found) == {"first.weight", "second.weight", "pooler.weight"}
    for layer in ("first", "second", "pooler"):
        rows = []
        for number, x in enumerate(model.seen[layer]):
            mask = data[number // (1 if layer == "pooler" else 2)]["attention_mask"].bool()
            rows.append(x if layer == "pooler" else x[mask])
        inputs = torch.cat(rows).double()
        gram = found[f"{layer}.weight"]
        assert gram.dtype == torch.float32
        torch.testing.assert_close(gram, (inputs.mT @ inputs / len(inputs)).float(), rtol=1e-5, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_does_not_fit_is_gathered_in_further_passes() -> None:
    model, runs = Toy(), 0
    data = batches()

    def forward(inputs: Inputs) -> None:
        nonlocal runs
        runs += 1
        model(inputs["x"])

    parameters = dict(model.named_parameters())
    whole = collect(Toy(), data)
    limit = 4 * (4**2 + 6**2)  # bytes: two layers, then the other two
    parts = list(collect_grams(model, parameters, lambda: data, forward, budget=limit))
    assert [list(part) for part in parts] == [["first.weight", "second.weight"], ["pooler.weight"]]
    assert runs == 2 * len(data)
    for part in parts:
        for name, gram in part.items():
            assert torch.equal(gram, whole[name])
    singly = list(collect_grams(model, parameters, lambda: data, forward, budget=1))
    assert [len(part) for part in singly] == [1, 1, 1, 0]  # one matrix is always allowed; the last layer is idle


def test_without_a_mask_every_row_counts() -> None:
    model = Toy()
    data = [{"x": batch["x"][:1, :3]} for batch in batches()]
    found = collect(model, data)
    inputs = torch.cat([x.reshape(-1, 4) for x in model.seen["first"]])
    torch.testing.assert_close(found["first.weight"], inputs.mT @ inputs / len(inputs))


def test_hooks_are_gone_after_a_failure() -> None:
    model = Toy()

    def fail(inputs: Inputs) -> None:
        raise ValueError("made to fail")

    with pytest.raises(ValueError, match="made to fail"):
        list(collect_grams(model, dict(model.named_parameters()), batches, fail))
    assert not any(module._forward_pre_hooks for module in model.modules())


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("llama-tied", lambda name: name.split(".")[-2] in (*ATTENTION, "gate_proj", "up_proj", "down_proj")),
        ("llama", lambda name: "proj" in name or name == "lm_head.weight"),
        ("mixtral", lambda name: name.split(".")[-2] in ATTENTION or name == "lm_head.weight"),
        ("gpt2", lambda name: name.split(".")[-2] in ("c_attn", "c_proj", "c_fc")),
        ("bert", lambda name: ".dense." in name or name.split(".")[-2] in ("query", "key", "value", "classifier")),
    ],
)
def test_layers_of_real_architectures(kind: str, wanted: Callable[[str], bool]) -> None:
    """Tied heads and fused experts have none; matrices of all other linear layers have one, and they are given rows."""
    model = make_model(kind)
    parameters = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    expected = {name for name in parameters if wanted(name)}
    assert set(linear_layers(model, parameters)) == expected
    assert len(expected) >= 2 * 4
    inputs = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    (grams,) = collect_grams(model, parameters, lambda: [inputs], lambda batch: model(**batch))
    assert set(grams) == expected
    for name, gram in grams.items():
        rows = parameters[name].shape[0 if kind == "gpt2" else 1]
        assert gram.shape == (rows, rows)
        assert bool((gram.diagonal() > 0).any())


@pytest.mark.parametrize("longest", [3, 4])
def test_both_paddings_of_an_encoder_and_decoder_are_left_out(longest: int) -> None:
    """Together or one by one, the same matrices; with ``longest`` 4, encoder and decoder are equally wide."""
    model = make_model("t5")
    sources, targets = [[6, 7, 8, 5], [9, 5]], [[0, 10], [0, 11, 12, 13][:longest]]

    def padded(lists: list[list[int]], name: str) -> Inputs:
        width = max(map(len, lists))
        prefix = "decoder_" if name == "decoder" else ""
        ids = torch.tensor([values + [0] * (width - len(values)) for values in lists])
        mask = torch.tensor([[1] * len(values) + [0] * (width - len(values)) for values in lists])
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}

    def grams(data: list[Inputs]) -> dict[str, torch.Tensor]:
        parts = collect_grams(
            model, dict(model.named_parameters()), lambda: data, lambda inputs: model(**inputs, use_cache=False)
        )
        return {name: gram for part in parts for name, gram in part.items()}

    together = grams([{**padded(sources, "encoder"), **padded(targets, "decoder")}])
    alone = grams([{**padded([a], "encoder"), **padded([b], "decoder")} for a, b in zip(sources, targets, strict=True)])
    assert "decoder.block.1.layer.1.EncDecAttention.k.weight" in together
    assert together.keys() == alone.keys()
    for name, gram in together.items():
        torch.testing.assert_close(gram, alone[name], rtol=1e-4, atol=1e-5, msg=name)
