"""Simulated memory against closed forms, and against what really is alive on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optmerge.runner.simulation import META, LiveBytes, simulated_peak
from tests.tiny import make_model


def test_what_autograd_keeps_is_counted_and_what_it_lets_go_is_not() -> None:
    x = torch.empty(1000, device=META)

    def without() -> None:
        y = x
        for _ in range(5):
            y = y.exp()

    def with_gradient() -> None:
        y = x.clone().requires_grad_(True)
        for _ in range(5):
            y = y.exp()
        y.sum().backward()

    assert simulated_peak(without) == 2 * 4000  # one result, and the next one made from it
    # the input, five results that exp's derivative needs, the sum; going back, two gradients beside them at most
    assert 6 * 4000 <= simulated_peak(with_gradient) <= 9 * 4000


def test_views_of_what_was_there_before_are_not_counted() -> None:
    weight, x = torch.empty(100, 50, device=META), torch.empty(3, 50, device=META)
    assert simulated_peak(lambda: x @ weight.t()) == 3 * 100 * 4


@pytest.mark.parametrize("kind", ["bert", "llama-tied", "gpt2", "mixtral"])
def test_the_simulation_sees_what_a_real_pass_has_alive(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(24).view(2, 12).remainder(60)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0

    def measure(device: str) -> int:
        model = make_model(kind).to(device)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        with LiveBytes(device=device) as counter:
            for _ in range(2):
                loss = nn.functional.log_softmax(model(**inputs).logits.float(), -1).sum()
                loss.backward()  # type: ignore[no-untyped-call]
        return counter.peak

    simulated, real = measure("meta"), measure("cpu")
    assert abs(simulated - real) <= 0.15 * real
