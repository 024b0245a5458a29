"""How far the experts' logits are from one expert's on its own data (for Sens-Merging).

    logit_distances(["law", "code"], load, judge, batches, device=device)["code"]     # fp32 scalar

Of a block of batches the one expert's logits are kept, then each of the others is put into the resident model and
compared with them. A block takes `BLOCK` bytes, so that a large vocabulary is never held for all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.objective.base import by_rows, mean_per_example, precise, scored_logits

BLOCK = 1 << 28  # bytes of logits that are kept at a time, of one batch at least

Judge = Callable[[str, Batch], Tensor]
"""(task, batch on the device) -> logits of the model in memory."""
Tasks = Iterable[tuple[str, Batch]]


def logit_distances(
    own: str, others: Sequence[str], load: Callable[[str], None], judge: Judge, batches: Tasks, *, device: torch.device
) -> dict[str, Tensor]:
    """Other expert -> the mean over examples of the L2 distance of its logits from those of ``own``.

    A text's distance is the mean over its predictions.

    Args:
        own: The expert whose data these are.
        others: Names of experts.
        load: Puts an expert into the resident model.
        judge: Runs it.
        batches: Of the expert's tasks.
        device: Where the model is.

    Returns:
        fp32 scalars on the CPU.
    """
    sums = {other: torch.zeros((), device=device) for other in others}
    count = 0
    with torch.no_grad():
        for block in _blocks(own, load, judge, batches, device):
            count += sum(batch.size for _, batch, _ in block)
            for other in others:
                load(other)
                for task, batch, kept in block:
                    rows = scored_logits(judge(task, batch), batch)
                    sums[other] += mean_per_example(by_rows(_distance, rows, kept), batch).sum()
    return {other: total.div_(max(1, count)).cpu() for other, total in sums.items()}


def _blocks(
    own: str, load: Callable[[str], None], judge: Judge, batches: Tasks, device: torch.device
) -> Iterator[list[tuple[str, Batch, Tensor]]]:
    """Batches on the device with the expert's logits for them."""
    block: list[tuple[str, Batch, Tensor]] = []
    held = 0
    for task, batch in batches:
        if not block:
            load(own)
        moved = batch.to(device)
        rows = scored_logits(judge(task, moved), moved).clone()
        block.append((task, moved, rows))
        held += rows.nbytes
        if held >= BLOCK:
            yield block
            block, held = [], 0
    if block:
        yield block


def _distance(rows: Tensor, kept: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(rows - precise(kept), dim=-1)
    return distance
