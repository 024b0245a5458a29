from __future__ import annotations

import pytest
import torch

from optmerge.calibration.ragged import Ragged

LISTS = [[1, 2, 3], [4], [], [5, 6]]


@pytest.mark.parametrize("positions", [[0, 1, 2, 3], [3, 0], [1], [1, 1]])
def test_padded_and_joined_are_the_lists(positions: list[int]) -> None:
    ragged = Ragged(LISTS, torch.int32)
    chosen = torch.tensor(positions)
    lists = [LISTS[place] for place in positions]
    longest = max(map(len, lists))
    assert ragged.padded(chosen, 9).tolist() == [values + [9] * (longest - len(values)) for values in lists]
    assert ragged.present(chosen).sum(1).tolist() == [len(values) for values in lists]
    assert ragged.joined(chosen).tolist() == [value for values in lists for value in values]


def test_padding_at_the_end_of_all_values() -> None:
    assert Ragged([[1, 2], [3]], torch.int32).padded(torch.tensor([1, 0]), 0).tolist() == [[3, 0], [1, 2]]


def test_truth_values_stay_truth_values() -> None:
    padded = Ragged([[True], [True, True]], torch.bool).padded(torch.tensor([0, 1]), 0)
    assert padded.dtype == torch.bool
    assert padded.tolist() == [[True, False], [True, True]]
