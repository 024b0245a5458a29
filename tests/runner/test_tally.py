"""Sums, means and influence values of terms, summaries among them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from optmerge.calibration import Batch
from optmerge.objective import ModelTerm, Outputs, TeacherBatch
from optmerge.runner.tally import Tally

CPU = torch.device("cpu")


class Ratio(ModelTerm):
    """A mean of statistics divided by another's."""

    name = "ratio"
    needs: ClassVar = frozenset()
    differentiable = True
    higher_is_better = False
    unit = "share"
    paper = "none"
    summary = True

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        raise NotImplementedError

    def finish(self, mean: Tensor) -> Tensor:
        return mean[0] / mean[1]


class Plain(Ratio):
    """A mean."""

    name = "plain"
    summary = False

    def finish(self, mean: Tensor) -> Tensor:
        return mean


def filled(statistics: Tensor, sizes: list[int]) -> Tally:
    tally = Tally(CPU, {"ratio": Ratio(), "plain": Plain()}, per_example=True)
    order = torch.randperm(len(statistics), generator=torch.Generator().manual_seed(1))
    for positions in order.split(sizes):
        rows = statistics[positions]
        tally.add("t", {"ratio": rows, "plain": rows[:, 0]}, positions, len(statistics))
    return tally


@pytest.fixture
def statistics() -> Tensor:
    return torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.parametrize("sizes", [[60], [1, 20, 39]])
def test_a_summary_is_made_of_the_means_whatever_the_batches(statistics: Tensor, sizes: list[int]) -> None:
    means, _ = filled(statistics, sizes).read()
    whole = statistics.double().mean(0)
    assert means["t"]["ratio"] == pytest.approx(float(whole[0] / whole[1]), rel=1e-12)
    assert means["t"]["plain"] == pytest.approx(float(whole[0]), rel=1e-12)


def test_slopes_are_derivatives_by_the_means(statistics: Tensor) -> None:
    slopes = filled(statistics, [60]).slopes()
    a, b = statistics.double().mean(0).tolist()
    assert list(slopes["t"]) == ["ratio"]
    assert slopes["t"]["ratio"].tolist() == pytest.approx([1 / b, -a / b**2], rel=1e-12)


def test_influence_values_have_the_value_as_their_mean_and_its_jackknife_variance(statistics: Tensor) -> None:
    tally = filled(statistics, [7, 53])
    values = tally.arrays()["t"]
    np.testing.assert_allclose(values["plain"], statistics[:, 0].double(), rtol=1e-12)
    assert values["ratio"].mean() == pytest.approx(tally.read()[0]["t"]["ratio"], rel=1e-12)
    rows = statistics.double().numpy()
    without = np.array([np.delete(rows, i, 0).mean(0) for i in range(len(rows))])
    left_out = without[:, 0] / without[:, 1]
    jackknife = (len(rows) - 1) ** 2 * left_out.var(ddof=1)  # n times the variance of the ratio
    assert values["ratio"].var(ddof=1) == pytest.approx(jackknife, rel=0.05)
