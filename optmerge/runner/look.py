"""What an evaluation looks at: which examples of a split, and which terms of them.

    look = Look("fit", examples=None, objective=True, metrics=False, share=(0, 2))
    look.count("topics", source), look.positions("topics", source)      # 180, the 90 of the first share

An evaluation may be made in shares, each of which looks at some of its examples: what they find adds up to what one
look at all of them finds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from optmerge.records import SplitName

if TYPE_CHECKING:
    from optmerge.calibration.batches import Split

Examples = Mapping[str, Sequence[int]] | None
"""Task -> positions in a split; None is all of it."""
WHOLE = (0, 1)


@dataclass(frozen=True, slots=True)
class Look:
    """What an evaluation, or a share of one, looks at.

    Attributes:
        split: The split.
        examples: Task -> positions, of the whole evaluation; None is the whole split.
        objective: Whether the objective's terms count.
        metrics: Whether the report's metrics count.
        share: Which of how many shares of these examples.
    """

    split: SplitName
    examples: Examples
    objective: bool
    metrics: bool
    share: tuple[int, int] = WHOLE

    def count(self, task: str, source: Split) -> int:
        """Examples of a task over all shares of the evaluation."""
        return source.size if self.examples is None else len(self.examples[task])

    def positions(self, task: str, source: Split) -> Sequence[int] | None:
        """Those of a task's examples that are in this share; None is the whole split.

        They are dealt from the longest to the shortest, to and fro, so that shares take about as long.
        """
        if self.share == WHOLE:
            return None if self.examples is None else self.examples[task]
        number, shares = self.share
        every = np.arange(source.size) if self.examples is None else np.asarray(self.examples[task], dtype=np.int64)
        lengths = source.examples.lengths.numpy()[every].sum(1)
        turn, seat = np.divmod(np.arange(len(every)), shares)
        mine = np.where(turn % 2 == 0, seat, shares - 1 - seat) == number
        dealt: list[int] = every[np.lexsort((every, -lengths))][mine].tolist()
        return dealt

    def ranks(self, task: str, source: Split) -> torch.Tensor | None:
        """int64[n], where each position of the split stands among the evaluation's, -1 where it does not stand.

        None where the evaluation looks at the whole split.
        """
        if self.examples is None:
            return None
        ranks = torch.full((source.size,), -1, dtype=torch.int64)
        positions = torch.as_tensor(self.examples[task], dtype=torch.int64)
        ranks[positions] = torch.arange(len(positions))
        return ranks
