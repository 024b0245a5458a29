from __future__ import annotations

from typing import cast

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from optmerge.calibration.batches import Split
from optmerge.calibration.encode import EncodedText
from optmerge.calibration.kinds.causal_lm import Completions
from optmerge.calibration.kinds.sequence_classification import ClassifiedTexts
from optmerge.calibration.ragged import Ragged
from optmerge.calibration.tokens import Tokens

LENGTHS = [3, 7, 5, 7, 2, 4]


class Filling:
    """As much of a tokenizer as batches need."""

    pad_token_id = 99
    eos_token_id = None


def make_split(*, completion: bool = False, labelled: bool = True) -> Split:
    encoded = [EncodedText([10 * n + i for i in range(length)]) for n, length in enumerate(LENGTHS, 1)]
    tokens = Tokens(encoded, cast(PreTrainedTokenizerBase, Filling()))
    if completion:
        marks = [[i >= 2 or i == length - 1 for i in range(length)] for length in LENGTHS]
        return Split("fit", list("012345"), Completions(tokens, Ragged(marks, torch.bool), labelled=labelled))
    classes = torch.tensor([0, 1, 0, 1, 0, 1]) if labelled else None
    return Split("fit", list("012345"), ClassifiedTexts(tokens, classes))


@pytest.mark.parametrize("batch_tokens", [1, 8, 14, 15, 10_000])
def test_batches_hold_every_example_once_within_the_limit(batch_tokens: int) -> None:
    batches = make_split().batches(batch_tokens=batch_tokens)
    assert sorted(position for batch in batches for position in batch.positions.tolist()) == list(range(6))
    for batch in batches:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        assert batch.size == 1 or ids.numel() <= batch_tokens
        assert batch.tokens == ids.numel()
        assert mask.sum(1).tolist() == [LENGTHS[p] for p in batch.positions]
        assert bool((ids[mask == 0] == 99).all())
        for row, position in enumerate(batch.positions.tolist()):
            assert ids[row, 0] == 10 * (position + 1)
            assert batch.targets is not None
            assert batch.targets[row] == position % 2
    longest = [batch.inputs["input_ids"].shape[1] for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_all_of_a_split_is_batched_once_and_positions_choose() -> None:
    split = make_split()
    assert split.batches(batch_tokens=8) is split.batches(batch_tokens=8)
    (batch,) = split.batches(batch_tokens=100, positions=[4, 1])
    assert batch.positions.tolist() == [1, 4]
    assert split.batches(batch_tokens=100, positions=[]) == []
    with pytest.raises(IndexError, match="the split has 6"):
        split.batches(batch_tokens=100, positions=[6])


def test_scored_places_stand_one_before_the_completion() -> None:
    for batch in make_split(completion=True).batches(batch_tokens=15):
        assert batch.scored is not None
        assert batch.rows is not None
        flat = batch.inputs["input_ids"].reshape(-1)
        for row, position in enumerate(batch.positions.tolist()):
            length = LENGTHS[position]
            wanted = [10 * (position + 1) + i for i in range(length) if i >= 2 or i == length - 1]
            assert batch.inputs["input_ids"][row, 1:][batch.scored[row, :-1]].tolist() == wanted
        assert torch.equal(flat[batch.rows + 1], flat[1:][batch.scored.reshape(-1)[:-1]])
        assert torch.equal(batch.targets, flat[batch.rows + 1])
        moved = batch.to("cpu")
        assert torch.equal(moved.rows, batch.rows)


def test_hashes_of_inputs_ignore_labels() -> None:
    one, other = make_split(), make_split(labelled=False)
    assert one.sha256 == other.sha256
    assert one.labels_sha256 != other.labels_sha256
    assert one.sha256 != make_split(completion=True).sha256
