"""The engine against closed forms: order of accumulation, exactness, and gradients against autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from optmerge.merging import kernels
from optmerge.merging.engine import Engine, one_hot
from optmerge.merging.slices import Chunks, Columns, Cut, Rows
from optmerge.merging.sources import Segment, Source
from optmerge.merging.writing import Workspace, write_merge

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tensors(count: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base.to(dtype)] + [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)]


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds with the compiled kernels and with torch alone."""
    chosen = str(request.param)
    if chosen == "torch":
        monkeypatch.setattr("optmerge.merging.writing.compiled", lambda: None)
    else:
        assert kernels.kind(torch.device("cpu")) == "compiled", "these tests need a C compiler"
    return chosen


def write(base: torch.Tensor, experts: list[torch.Tensor], coefficients: list[float]) -> torch.Tensor:
    out = torch.full_like(base, torch.nan)
    sources = tuple(Source(expert, absolute=True) for expert in experts)
    write_merge(out, Segment((), base, sources), coefficients, Workspace(torch.device("cpu"), torch.float32))
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (), (130, 700), (2, 3, 5)])
def test_order_of_accumulation_is_exact(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    base, *experts = tensors(3, shape, dtype)
    coefficients = [0.3, -0.7, 1.1]
    total = torch.zeros(shape)
    for c, expert in zip(coefficients, experts, strict=True):
        total = total + torch.tensor(c) * (expert.float() - base.float())
    expected = (base.float() + total).to(dtype)
    assert torch.equal(write(base, experts, coefficients), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_gives_the_base_and_one_hot_the_expert_bit_for_bit(dtype: torch.dtype) -> None:
    base, *experts = tensors(3, (40, 50), dtype)
    assert torch.equal(write(base, experts, [0.0, 0.0, 0.0]), base)
    for k, expert in enumerate(experts):
        row = [0.0, 0.0, 0.0]
        row[k] = 1.0
        assert torch.equal(write(base, experts, row), expert)


def test_a_delta_that_is_not_an_expert_is_added_even_when_one_hot() -> None:
    base, expert = tensors(1, (7, 9), torch.float32)
    out = torch.empty_like(base)
    delta = Segment((), base, (Source(expert - base, absolute=False),))
    write_merge(out, delta, [1.0], Workspace(base.device, torch.float32))
    assert torch.equal(out, base + (expert - base))


def test_larger_than_a_chunk_equals_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    base, *experts = tensors(2, (1000,), torch.float32)
    whole = write(base, experts, [0.4, 0.5])
    monkeypatch.setattr("optmerge.merging.writing.CHUNK", 33)
    assert torch.equal(write(base, experts, [0.4, 0.5]), whole)


class Tied(nn.Module):
    """An embedding tied to the output, a matrix used twice, and a frozen vector."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def make(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) * 0.3)

        self.embedding, self.matrix, self.bias = make(11, 6), make(6, 6), make(6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding[ids]
        for _ in range(2):
            hidden = torch.tanh(hidden @ self.matrix + self.bias)
        return hidden @ self.embedding.T


def engine_for(
    model: nn.Module,
    experts: list[dict[str, torch.Tensor]],
    groups: dict[str, int],
    form: str,
    cuts: dict[str, Cut] | None = None,
) -> Engine:
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def segments(name: str) -> list[Segment]:
        last = Source(experts[-1][name] - base[name], absolute=False)
        return [Segment((), base[name], (*(Source(expert[name], absolute=True) for expert in experts[:-1]), last))]

    parameters = {name: parameter for name, parameter in model.named_parameters()}
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    return Engine(parameters, segments, groups, form=form, cuts=cuts)  # type: ignore[arg-type]


def loss_of(model: Callable[[torch.Tensor], torch.Tensor], step: int) -> torch.Tensor:
    ids = torch.arange(5 * (step + 1)).remainder(11)
    return nn.functional.cross_entropy(model(ids), ids.flip(0)) * (0.5 + step)


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
def test_contraction_equals_autograd_through_functional_call(form: str) -> None:
    model = Tied(torch.float64)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    experts = [
        {
            name: value + 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(k), dtype=value.dtype)
            for name, value in base.items()
        }
        for k in range(3)
    ]
    groups = {"embedding": 0, "matrix": 1, "bias": 1}
    engine = engine_for(model, experts, groups, form)
    table = np.array([[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]])
    engine.apply(table)
    with engine.gradient() as gradient:
        for step in range(3):  # several backward passes: tasks and micro-batches
            loss_of(model, step).backward()

    variables = torch.tensor(table, requires_grad=True)
    merged = {
        name: value + sum(variables[groups[name], k] * (experts[k][name] - value) for k in range(3))
        for name, value in base.items()
    }
    total = sum(loss_of(lambda ids: functional_call(model, merged, (ids,)), step) for step in range(3))
    (expected,) = torch.autograd.grad(total, variables)
    np.testing.assert_allclose(gradient.table(), expected.numpy(), rtol=1e-10)


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
def test_frozen_groups_and_unwanted_directions_get_no_gradient(form: str) -> None:
    model = Tied(torch.float32)
    experts = [{name: p.detach() + 0.1 for name, p in model.named_parameters()} for _ in range(2)]
    engine = engine_for(model, experts, {"embedding": 0, "matrix": 1, "bias": 2}, form)
    engine.apply(np.full((3, 2), 0.3))
    with engine.gradient(groups=[1], columns=[1]) as gradient:
        loss_of(model, 0).backward()
    table = gradient.table()
    assert table[1, 1] != 0
    table[1, 1] = 0
    assert not table.any()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_second_gradient_does_not_remember_the_first() -> None:
    model = Tied(torch.float32)
    experts = [{name: p.detach() + 0.1 for name, p in model.named_parameters()} for _ in range(2)]
    engine = engine_for(model, experts, {"embedding": 0, "matrix": 0, "bias": 0}, "accumulate")
    engine.apply(np.full((1, 2), 0.3))
    tables = []
    for _ in range(2):
        with engine.gradient() as gradient:
            loss_of(model, 0).backward()
        tables.append(gradient.table())
    np.testing.assert_array_equal(tables[0], tables[1])


def test_only_changed_rows_are_rewritten() -> None:
    model = Tied(torch.float32)
    experts = [{name: p.detach() + 0.1 for name, p in model.named_parameters()} for _ in range(2)]
    engine = engine_for(model, experts, {"embedding": 0, "matrix": 1, "bias": 1}, "accumulate")
    table = np.full((2, 2), 0.3)
    assert engine.apply(table) == 3
    assert engine.apply(table) == 0
    table[1, 0] = 0.4
    assert engine.apply(table) == 2
    engine.forget()
    assert engine.apply(table) == 3


SLICED: tuple[dict[str, int], dict[str, Cut]] = (
    {"embedding": 0, "matrix": 6, "bias": 12},
    {"embedding": Columns(1, 11, 6), "matrix": Rows(6, 6), "bias": Chunks((0, 2, 6))},
)


def perturbed(model: nn.Module, count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {
            name: p.detach() + 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)).to(p.dtype)
            for name, p in model.named_parameters()
        }
        for k in range(count)
    ]


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
def test_gradients_of_sliced_parameters_equal_autograd(form: str) -> None:
    model = Tied(torch.float64)
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    experts = perturbed(model, 3)
    groups, cuts = SLICED
    engine = engine_for(model, experts, groups, form, cuts)
    table = np.random.default_rng(0).uniform(-0.5, 1.0, (14, 3))
    assert engine.apply(table) == 3
    with engine.gradient() as gradient:
        for step in range(2):
            loss_of(model, step).backward()

    variables = torch.tensor(table, requires_grad=True)
    spread = {
        "embedding": variables[0:6].T[:, None, :],
        "matrix": variables[6:12].T[:, :, None],
        "bias": variables[12:14].T[:, [0, 0, 1, 1, 1, 1]],
    }
    merged = {
        name: value + sum(spread[name][k] * (experts[k][name] - value) for k in range(3))
        for name, value in base.items()
    }
    total = sum(loss_of(lambda ids: functional_call(model, merged, (ids,)), step) for step in range(2))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), merged[name].detach(), rtol=1e-12, atol=1e-12)
    (expected,) = torch.autograd.grad(total, variables)
    np.testing.assert_allclose(gradient.table(), expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [[0.3, -0.7, 1.1], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
def test_slices_that_are_alike_give_the_bits_of_one_group(dtype: torch.dtype, row: list[float]) -> None:
    groups, cuts = SLICED
    models = [Tied(dtype), Tied(dtype)]
    experts = perturbed(models[0], 3)
    sliced = engine_for(models[0], experts, groups, "accumulate", cuts)
    whole = engine_for(models[1], experts, {"embedding": 0, "matrix": 1, "bias": 2}, "accumulate")
    sliced.apply(np.random.default_rng(0).uniform(size=(14, 3)))  # what was there before leaves no trace
    sliced.apply(np.array([row] * 14))
    whole.apply(np.array([row] * 3))
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_nearly_alike_slices_have_the_bits_of_one_group_where_they_are_alike() -> None:
    """The vectorised way has the same order of accumulation, not only the copy of it for equal rows."""
    groups, cuts = SLICED
    models = [Tied(torch.float32), Tied(torch.float32)]
    experts = perturbed(models[0], 3)
    sliced = engine_for(models[0], experts, groups, "accumulate", cuts)
    whole = engine_for(models[1], experts, {"embedding": 0, "matrix": 1, "bias": 2}, "accumulate")
    table = np.array([[0.3, -0.7, 1.1]] * 14)
    table[0], table[6] = 0.2, 0.9
    sliced.apply(table)
    whole.apply(table[1:4])
    assert torch.equal(models[0].embedding[:, 1:], models[1].embedding[:, 1:])
    assert torch.equal(models[0].matrix[1:], models[1].matrix[1:])
    assert not torch.equal(models[0].matrix[0], models[1].matrix[0])


def test_only_parameters_with_a_changed_slice_are_rewritten() -> None:
    model = Tied(torch.float32)
    groups, cuts = SLICED
    engine = engine_for(model, perturbed(model, 2), groups, "accumulate", cuts)
    table = np.full((14, 2), 0.3)
    assert engine.apply(table) == 3
    table[5, 1] = 0.4
    assert engine.apply(table) == 1
    assert engine.apply(table) == 0
    table[[6, 13]] = 0.0
    assert engine.apply(table) == 2


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
def test_frozen_slices_get_no_gradient_when_none_of_the_parameter_is_wanted(form: str) -> None:
    model = Tied(torch.float32)
    groups, cuts = SLICED
    engine = engine_for(model, perturbed(model, 2), groups, form, cuts)
    engine.apply(np.full((14, 2), 0.3))
    with engine.gradient(groups=[13], columns=[1]) as gradient:
        loss_of(model, 0).backward()
    table = gradient.table()
    assert table[12:, 1].all()
    table[12:, 1] = 0
    assert not table.any()


def test_one_hot_table() -> None:
    assert one_hot(2, 3, 1).tolist() == [[0, 1, 0], [0, 1, 0]]
