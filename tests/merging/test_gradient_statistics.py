"""Sums of squared gradients and saliency against derivatives taken one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optmerge.merging.gradient_statistics import collect_saliency, collect_squares


class Toy(nn.Module):
    """A parameter of every shape that a model may have, one of them used twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(7, 4)
        self.mix = nn.Conv1d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.LayerNorm(4)
        self.idle = nn.Linear(4, 2)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        self.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.mix(self.words(ids).mT).mT * self.scale
        scores: Tensor = self.norm(hidden).sum(0) @ self.words.weight.mT  # tied: the weight's two uses add up
        return scores


EXAMPLES = (torch.tensor([1, 2, 3]), torch.tensor([4, 4]), torch.tensor([0, 6, 5, 1]))


def losses(model: Toy) -> Iterator[Sequence[Tensor]]:
    for ids in EXAMPLES:
        log_probs = F.log_softmax(model(ids).float(), -1)
        yield [log_probs[0], log_probs[3] * 0.5]


def by_hand(model: Toy) -> dict[str, list[list[Tensor | None]]]:
    """Parameter -> example -> scalar -> gradient."""
    model.requires_grad_(True)
    parameters = dict(model.named_parameters())
    found: dict[str, list[list[Tensor | None]]] = {name: [] for name in parameters}
    for scalars in losses(model):
        made = [
            torch.autograd.grad(s, list(parameters.values()), retain_graph=True, allow_unused=True) for s in scalars
        ]
        for number, name in enumerate(parameters):
            found[name].append([gradients[number] for gradients in made])
    model.requires_grad_(False)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_are_of_every_scalar_by_itself_and_means_over_examples(dtype: torch.dtype) -> None:
    model = Toy().to(dtype)
    (found,) = collect_squares(dict(model.named_parameters()), lambda: losses(model))
    gradients = by_hand(model)
    assert set(found) == set(gradients) - {"idle.weight", "idle.bias"}
    for name, value in found.items():
        expected = sum(g.float().square() for example in gradients[name] for g in example if g is not None)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected / len(EXAMPLES))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saliency_is_the_weight_times_the_mean_size_of_its_gradient(dtype: torch.dtype) -> None:
    model = Toy().to(dtype)
    parameters = dict(model.named_parameters())
    (found,) = collect_saliency(parameters, lambda: ([scalars[0]] for scalars in losses(model)))
    for name, gradients in by_hand(model).items():
        if name in found:
            sizes = sum(g.float().abs() for g, _ in gradients if g is not None)
            torch.testing.assert_close(found[name], sizes / len(EXAMPLES) * parameters[name].float().abs())


def test_what_does_not_fit_is_gathered_in_further_passes() -> None:
    model, runs = Toy(), 0
    parameters = dict(model.named_parameters())

    def counted() -> Iterator[Sequence[Tensor]]:
        nonlocal runs
        runs += 1
        return losses(model)

    (whole,) = collect_squares(parameters, lambda: losses(model))
    parts = list(collect_squares(parameters, counted, budget=4 * 60))
    assert runs == len(parts) > 2
    together = {name: value for part in parts for name, value in part.items()}
    assert set(together) == set(whole)
    for name, value in together.items():
        torch.testing.assert_close(value, whole[name])


def test_it_is_no_square_of_a_sum_over_examples() -> None:
    model = Toy()
    parameters = dict(model.named_parameters())
    (singly,) = collect_squares(parameters, lambda: losses(model))
    (at_once,) = collect_squares(parameters, lambda: [[sum(s[0] for s in losses(model))]])  # type: ignore[list-item]
    name = "mix.weight"
    assert (at_once[name] / len(EXAMPLES) - singly[name]).norm() > 0.1 * singly[name].norm()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = Toy()
    parameters = dict(model.named_parameters())
    before = {name: value.clone() for name, value in parameters.items()}

    def made() -> Iterator[Sequence[Tensor]]:
        yield from losses(model)
        if fails:
            raise ValueError("made to fail")

    if fails:
        with pytest.raises(ValueError, match="made to fail"):
            list(collect_squares(parameters, made))
    else:
        list(collect_squares(parameters, made))
    for name, parameter in parameters.items():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert not parameter._post_accumulate_grad_hooks
        assert torch.equal(parameter, before[name])


def test_it_works_where_gradients_are_off() -> None:
    model = Toy()
    with torch.no_grad():
        (found,) = collect_squares(dict(model.named_parameters()), lambda: losses(model))
    assert found["scale"] > 0
