"""Steps of Adam that are handed out."""

from __future__ import annotations

import pytest
import torch

from optmerge.merging.methods.descent import Adam, Momentum
from tests.merging.methods.toy import random


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_the_steps_are_those_of_torch(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs, ours = torch.nn.Parameter(torch.zeros(5, 3)), torch.zeros(5, 3)
    reference: torch.optim.Optimizer
    step: Adam | Momentum
    if name == "adam":
        reference, step = torch.optim.Adam([theirs], lr=0.01), Adam(ours, lr=0.01)
    else:
        reference = torch.optim.SGD([theirs], lr=0.01, momentum=0.8)
        step = Momentum(ours, lr=0.01, momentum=0.8)
    buffer = torch.empty(5, 3)
    for _ in range(20):
        buffer.copy_(random(generator, 5, 3))
        theirs.grad = buffer.clone()
        reference.step()
        ours += step(buffer)
        torch.testing.assert_close(ours, theirs.detach())


def test_a_step_is_the_callers_to_change_and_no_gradient_is_no_step() -> None:
    gradient = torch.ones(4)
    kept, changed = Adam(gradient, lr=0.1), Adam(gradient, lr=0.1)
    for _ in range(3):
        step = kept(gradient).clone()
        assert torch.equal(changed(gradient), step)
        changed(gradient).zero_()
        kept(gradient)
    assert not torch.count_nonzero(Adam(gradient, lr=0.1)(torch.zeros(4)))
