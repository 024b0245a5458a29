"""The closed form against linear models whose best coefficients are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optmerge.merging import closed_form
from optmerge.merging.closed_form import normal_equations, output_products, solve

K, OUT, IN = 3, 5, 12


def deltas(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(OUT, IN, generator=generator, dtype=torch.float64).to(dtype) for _ in range(K)]


def gram(seed: int, columns: slice = slice(None)) -> torch.Tensor:
    """The mean of x x^T over inputs that are zero outside some columns."""
    inputs = torch.zeros(40, IN, dtype=torch.float64)
    inputs[:, columns] = torch.randn(40, IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[
        :, columns
    ]
    return inputs.mT @ inputs / 40


def equations(
    taus: list[torch.Tensor], grams: list[torch.Tensor], emphasis: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    return normal_equations([output_products(taus, each) for each in grams], emphasis=emphasis)


@pytest.mark.parametrize("emphasis", [0.0, 1.0, 2.0])
def test_the_coefficients_minimise_the_weighted_error_of_the_outputs(emphasis: float) -> None:
    taus, grams = deltas(), [gram(seed) for seed in range(K)]
    found = solve(*equations(taus, grams, emphasis), towards=0.3, ridge=0.0)

    def error(coefficients: np.ndarray) -> float:
        merged = sum(float(c) * tau for c, tau in zip(coefficients, taus, strict=True))
        off = [merged - tau for tau in taus]
        return float(
            sum(
                torch.trace(d @ g @ d.T) * torch.trace(t @ g @ t.T) ** (emphasis - 1)
                for d, g, t in zip(off, grams, taus, strict=True)
            )
        )

    best = error(found)
    for axis in range(K):
        for step in (-1e-3, 1e-3):
            assert error(found + step * np.eye(K)[axis]) > best


def test_experts_that_see_different_inputs_are_recovered_exactly() -> None:
    # Each task vector acts on columns of its own, where only its expert has inputs.
    thirds = [slice(4 * k, 4 * k + 4) for k in range(K)]
    taus = [
        torch.zeros_like(tau).index_copy_(1, torch.arange(IN)[t], tau[:, t])
        for tau, t in zip(deltas(), thirds, strict=True)
    ]
    found = solve(*equations(taus, [gram(k, t) for k, t in enumerate(thirds)]), towards=0.3, ridge=0.0)
    np.testing.assert_allclose(found, 1.0, atol=1e-12)


def test_equal_inputs_and_orthogonal_task_vectors_give_the_average() -> None:
    taus = [torch.zeros(OUT, IN, dtype=torch.float64) for _ in range(K)]
    for k, tau in enumerate(taus):
        tau[k, k] = 2.0
    found = solve(*equations(taus, [torch.eye(IN, dtype=torch.float64)] * K), towards=0.9, ridge=0.0)
    np.testing.assert_allclose(found, 1 / K, atol=1e-12)


def test_equal_experts_share_one_whole_task_vector() -> None:
    taus = [deltas()[0]] * K
    found = solve(*equations(taus, [gram(seed) for seed in range(K)]), towards=0.5, ridge=0.0)
    np.testing.assert_allclose(found, 1 / K, atol=1e-9)  # the nearest to `towards` of all that sum to 1


def test_scaled_inputs_and_layers_do_not_decide() -> None:
    taus, grams = deltas(), [gram(seed) for seed in range(K)]
    plain = solve(*equations(taus, grams), towards=0.3, ridge=0.1)
    scaled = solve(*equations(taus, [(10.0**k) * g for k, g in enumerate(grams)]), towards=0.3, ridge=0.1)
    np.testing.assert_allclose(scaled, plain, rtol=1e-10)
    for emphasis in (0.0, 1.0, 2.0):
        plain = solve(*equations(taus, grams, emphasis), towards=0.3, ridge=0.1)
        louder = solve(*equations(taus, [5 * g for g in grams], emphasis), towards=0.3, ridge=0.1)
        np.testing.assert_allclose(louder, plain, rtol=1e-10)
    plain = solve(*equations(taus, grams), towards=0.3, ridge=0.1)
    larger = solve(*equations([7 * tau for tau in taus], grams), towards=0.3, ridge=0.1)
    np.testing.assert_allclose(larger, plain, rtol=1e-10)


def test_emphasis_favours_the_expert_that_changes_most() -> None:
    taus = [3 * deltas()[0], *deltas()[1:]]
    firsts = [
        solve(*equations(taus, [gram(0)] * K, emphasis), towards=0.3, ridge=0.0)[0] for emphasis in (0.0, 1.0, 2.0)
    ]
    assert firsts[0] < firsts[1] < firsts[2] < 1.0


def test_the_order_of_experts_is_only_a_name() -> None:
    taus, grams, order = deltas(), [gram(seed) for seed in range(K)], [2, 0, 1]
    plain = solve(*equations(taus, grams), towards=0.3, ridge=0.1)
    other = solve(*equations([taus[k] for k in order], [grams[k] for k in order]), towards=0.3, ridge=0.1)
    np.testing.assert_allclose(other, plain[order], rtol=1e-10)


def test_the_ridge_draws_to_the_uniform_value() -> None:
    pair = equations(deltas(), [gram(seed) for seed in range(K)])
    free, some, much = (solve(*pair, towards=0.3, ridge=ridge) for ridge in (0.0, 1.0, 1e9))
    assert np.linalg.norm(free - 0.3) > np.linalg.norm(some - 0.3) > 0
    np.testing.assert_allclose(much, 0.3, atol=1e-6)


def test_what_no_output_depends_on_stays_at_the_uniform_value() -> None:
    taus = [*deltas()[:2], torch.zeros(OUT, IN, dtype=torch.float64)]
    for ridge in (0.0, 1.0):
        assert solve(*equations(taus, [gram(seed) for seed in range(K)]), towards=0.3, ridge=ridge)[2] == pytest.approx(
            0.3
        )
    nothing = solve(*equations(taus, [torch.zeros(IN, IN, dtype=torch.float64)] * K), towards=0.3, ridge=0.0)
    assert nothing.tolist() == [0.3] * K


def test_fp32_agrees_with_fp64_and_chunks_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    g = gram(1)
    expected = output_products(deltas(), g)
    taus = deltas()
    by_hand = [[float(torch.trace(a @ g @ b.T)) for b in taus] for a in taus]
    np.testing.assert_allclose(expected, by_hand, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(output_products(deltas(dtype=torch.float32), g), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(closed_form, "CHUNK", 2 * K * IN)
    np.testing.assert_allclose(output_products(deltas(), g), expected, rtol=1e-12, atol=1e-12)
