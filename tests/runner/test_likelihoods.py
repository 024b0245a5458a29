"""What is gone back from: exact over few classes, drawn otherwise, and the labels' loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from optmerge.calibration.batches import Batch
from optmerge.runner.likelihoods import CLASSES, count_scalars, draw, generator_for, predicted, true_loss


def logits_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def batch(size: int, scored: Tensor | None = None, targets: Tensor | None = None) -> Batch:
    return Batch({}, torch.arange(size), scored, targets)


def information(scalars: list[Tensor], logits: Tensor) -> Tensor:
    """The sum over scalars of the outer product of their gradients by the logits of one prediction."""
    gradients = [torch.autograd.grad(scalar, logits, retain_graph=True)[0].flatten() for scalar in scalars]
    return sum((torch.outer(g, g) for g in gradients), torch.zeros(()))


def test_over_few_classes_it_is_the_fisher_matrix_of_a_softmax() -> None:
    logits = logits_of(1, 5)
    found = information(predicted(logits, batch(1), generator_for(0, "a")), logits)
    p = torch.softmax(logits.detach()[0], -1)
    torch.testing.assert_close(found, torch.diag(p) - torch.outer(p, p))


def test_over_many_classes_it_is_that_in_expectation() -> None:
    logits = logits_of(1, CLASSES + 1)
    generator = generator_for(0, "a")
    count = 4000
    found = sum((information(predicted(logits, batch(1), generator), logits) for _ in range(count)), torch.zeros(()))
    p = torch.softmax(logits.detach()[0], -1)
    torch.testing.assert_close(found / count, torch.diag(p) - torch.outer(p, p), atol=0.02, rtol=0)
    assert count_scalars(CLASSES + 1, one_each=True) == count_scalars(2, one_each=False) == 1
    assert count_scalars(CLASSES, one_each=True) == CLASSES


def test_of_a_text_scored_places_count_and_their_classes_are_independent() -> None:
    """The square of a text's summed gradient has no cross terms in expectation."""
    logits = logits_of(1, 3, 2)
    scored = torch.tensor([[True, False, True]])
    generator = generator_for(1, "a")
    count = 4000
    found = sum(
        (information(predicted(logits, batch(1, scored), generator), logits) for _ in range(count)), torch.zeros(())
    )
    p = torch.softmax(logits.detach()[0], -1)
    blocks = [(torch.diag(row) - torch.outer(row, row)) * bool(seen) for row, seen in zip(p, scored[0], strict=True)]
    expected = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found / count, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_is_where_the_summed_probabilities_pass(dtype: torch.dtype) -> None:
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log().to(dtype).expand(6, 4)
    uniform = torch.tensor([0.0, 0.05, 0.11, 0.29, 0.31, 0.9999999])
    assert draw(logits.float(), uniform).tolist() == [0, 0, 1, 1, 3, 3]


def test_a_class_that_is_impossible_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(3, 3)
    assert draw(logits, torch.tensor([0.0, 0.5, 1.0 - 2**-24])).tolist() == [1, 1, 1]


def test_the_same_numbers_for_one_expert_and_others_for_another() -> None:
    def numbers(seed: int, expert: str) -> list[float]:
        return torch.rand(4, generator=generator_for(seed, expert)).tolist()

    state = torch.get_rng_state()
    assert numbers(3, "a") == numbers(3, "a")
    assert numbers(3, "a") != numbers(3, "b")
    assert numbers(3, "a") != numbers(4, "a")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_of_labels_is_the_mean_over_a_texts_predictions() -> None:
    logits = logits_of(2, 3, 4)
    scored = torch.tensor([[True, True, False], [False, True, False]])
    wanted = torch.tensor([1, 3, 0])
    (found,) = true_loss(logits, batch(2, scored, wanted))
    singly = F.cross_entropy(logits[scored], wanted, reduction="none")
    torch.testing.assert_close(found, singly[:2].mean() + singly[2])
    with pytest.raises(ValueError, match="needs labels, and this batch has none"):
        true_loss(logits, batch(2, scored))
