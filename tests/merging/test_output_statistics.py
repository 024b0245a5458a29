"""Gram matrices of gradients by outputs, against derivatives of a model written down by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from optmerge.merging import output_statistics
from optmerge.merging.output_statistics import BatchLosses, collect_output_grams
from optmerge.merging.statistics import Inputs


class Toy(nn.Module):
    """Two layers per token, the first of them called twice and changed in place, and one per example."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Linear(4, 6)
        self.second = Conv1D(4, 6)  # [in, out] = [6, 4]
        self.pooler = nn.Linear(4, 3)
        self.idle = nn.Linear(4, 2)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        self.requires_grad_(False)
        self.outputs: list[tuple[str, Tensor]] = []
        self.watching = False

    def seen(self, name: str, output: Tensor) -> Tensor:
        if self.watching:
            output = output.requires_grad_().clone() if not output.requires_grad else output
            output.retain_grad()
            self.outputs.append((name, output))
        return output * 1

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for _ in range(2):
            hidden = torch.relu_(self.seen("first", self.first(x)))
            x = self.seen("second", self.second(hidden))
        weights = mask / mask.sum(1, keepdim=True)
        return self.seen("pooler", self.pooler(torch.einsum("bt,bth->bh", weights, x)))


def inputs(lengths: Sequence[int], seed: int) -> Inputs:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    x = torch.randn(len(lengths), max(lengths), 4, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "attention_mask": mask}


DATA = [inputs((5, 3, 4), 0), inputs((2, 3), 1)]


def losses(model: Toy) -> BatchLosses:
    def run(batch: Inputs) -> Sequence[Tensor]:
        log_probs = torch.log_softmax(model(batch["x"], batch["attention_mask"]), -1)
        return [log_probs[:, 0].sum(), 0.5 * log_probs[:, 2].sum()]

    return run


def batches(model: Toy) -> Iterator[tuple[Inputs, BatchLosses]]:
    return ((batch, losses(model)) for batch in DATA)


def by_hand() -> dict[str, Tensor]:
    """Every scalar by itself, and tokens without padding."""
    model = Toy()
    model.watching = True
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    for batch in DATA:
        real = batch["attention_mask"].bool()
        for number in range(2):
            model.outputs.clear()
            losses(model)(batch)[number].backward()  # type: ignore[no-untyped-call]
            for name, output in model.outputs:
                assert output.grad is not None
                rows = output.grad if name == "pooler" else output.grad[real]
                sums[name] = sums.get(name, torch.zeros(())) + rows.mT @ rows
                tokens[name] = tokens.get(name, 0) + (len(rows) if number == 0 else 0)
    return {f"{name}.weight": total / tokens[name] for name, total in sums.items()}


def test_a_matrix_is_the_mean_over_real_tokens_of_every_scalars_gradients() -> None:
    model = Toy()
    (found,) = collect_output_grams(model, dict(model.named_parameters()), lambda: batches(model))
    expected = by_hand()
    assert set(expected) == {"first.weight", "second.weight", "pooler.weight"}
    assert set(found) == set(expected)
    for name, gram in found.items():
        assert gram.dtype == torch.float32
        torch.testing.assert_close(gram, expected[name], rtol=1e-4, atol=1e-6)


def test_bf16_is_summed_up_in_fp32() -> None:
    model = Toy().to(torch.bfloat16)
    data = [{name: value.to(torch.bfloat16) for name, value in batch.items()} for batch in DATA]
    (found,) = collect_output_grams(model, dict(model.named_parameters()), lambda: [(x, losses(model)) for x in data])
    for name, gram in by_hand().items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gram).norm() < 0.05 * gram.norm()


def test_passes_over_some_layers_at_a_time() -> None:
    model = Toy()
    parameters = dict(model.named_parameters())
    (whole,) = collect_output_grams(model, parameters, lambda: batches(model))
    parts = list(collect_output_grams(model, parameters, lambda: batches(model), budget=1))
    assert [list(part) for part in parts] == [["first.weight"], ["second.weight"], ["pooler.weight"], []]
    for part in parts:
        for name, gram in part.items():
            torch.testing.assert_close(gram, whole[name])


def test_layers_with_many_outputs_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_statistics, "LARGEST", 4)
    model = Toy()
    (found,) = collect_output_grams(model, dict(model.named_parameters()), lambda: batches(model))
    assert set(found) == {"second.weight", "pooler.weight"}


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_and_no_gradient_is_left(fails: bool) -> None:
    model = Toy()

    def run(batch: Inputs) -> Sequence[Tensor]:
        made = losses(model)(batch)
        if fails:
            raise ValueError("made to fail")
        return made

    parts = collect_output_grams(model, dict(model.named_parameters()), lambda: [(DATA[0], run)])
    if fails:
        with pytest.raises(ValueError, match="made to fail"):
            list(parts)
    else:
        list(parts)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
