"""Several examples in one row of a causal language model's inputs, none of which sees another.

    packed = PackedCompletions(completions, width=512)
    batch = packed.collate(positions)        # {"input_ids": int64[R, W], "position_ids": int64[R, W]}, R <= B
    logits = batch.unpacked(model(**batch.inputs).logits)        # [B, T, V], as without packing

Positions start at 0 for every example. Without an attention mask, transformers takes a position that does not follow on
the one before it for the start of another text, and lets attention not reach across. Which architectures do that is
checked by value before a search (`optmerge.runner.packing`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch, Examples


class PackedCompletions(Examples):
    """A language model's examples; a batch has the ones that it would have without packing, in fewer rows.

    Args:
        examples: Makes one row per example, padded on the right.
        width: Tokens of a row.
    """

    def __init__(self, examples: Examples, *, width: int) -> None:
        self.lengths = examples.lengths
        self._examples = examples
        self._width = width

    def unpacked(self) -> Examples:
        """See `Examples.unpacked`."""
        return self._examples

    def collate(self, positions: Tensor) -> Batch:
        """See `Examples.collate`."""
        alone = self._examples.collate(positions)
        lengths = self.lengths[positions, 0]
        row, begin, filled = _shelve(lengths.tolist(), self._width)
        width = max(filled)
        within = torch.arange(int(lengths.max()))
        present = within < lengths[:, None]  # [B, T]
        places = (torch.tensor(row) * width + torch.tensor(begin))[:, None] + within
        ids = alone.inputs["input_ids"].new_zeros(len(filled) * width)
        ids[places[present]] = alone.inputs["input_ids"][present]
        at = torch.zeros_like(ids)
        at[places[present]] = within.expand_as(present)[present]
        inputs = {"input_ids": ids.view(-1, width), "position_ids": at.view(-1, width)}
        return replace(alone, inputs=inputs, places=places.masked_fill(~present, 0).flatten())

    def inputs(self) -> Iterable[Tensor]:
        """See `Examples.inputs`."""
        yield torch.tensor([self._width])
        yield from self._examples.inputs()

    def truth(self) -> Tensor | None:
        """See `Examples.truth`."""
        return self._examples.truth()


def _shelve(lengths: list[int], width: int) -> tuple[list[int], list[int], list[int]]:
    """Put every length into the first row that has room for it; the longest should come first.

    Returns:
        The row of every length, where it begins there, and how full every row is.
    """
    row, begin, filled = [], [], list[int]()
    for length in lengths:
        fits = (place for place, taken in enumerate(filled) if taken + length <= width)
        place = next(fits, len(filled))
        if place == len(filled):
            filled.append(0)
        row.append(place)
        begin.append(filled[place])
        filled[place] += length
    return row, begin, filled
