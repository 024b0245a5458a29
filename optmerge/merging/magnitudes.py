"""How large task vectors are: the mean of |expert - base|, per expert and parameter, remembered by the models' content.

means = task_vector_magnitudes(family)
means["sentiment"]["bert.encoder.layer.0.output.dense.weight"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from optmerge.merging.low_rank import add_low_rank
from optmerge.merging.sources import LowRank, Segment
from optmerge.merging.writing import LOW_RANK_CHUNK, row_chunks

if TYPE_CHECKING:
    from optmerge.models.family import Family


def task_vector_magnitudes(family: Family) -> dict[str, dict[str, float]]:
    """Expert -> merged parameter -> mean of its task vector's absolute values; every weight is read once."""
    from optmerge.merging.deltas import Deltas
    from optmerge.merging.recipe import Direction
    from optmerge.models.cache import recall, remember

    key = f"{family.fingerprint()}-{family.heads}"  # heads decide which parameters there are
    known = recall("magnitudes", key)
    if known is None or set(known) != set(family.experts):
        deltas = Deltas(family, [Direction(name, "expert") for name in family.experts], cache=None)
        known = {expert: {} for expert in family.experts}
        for name in family.parameters:
            for expert, mean in zip(family.experts, _means(deltas.segments(name)), strict=True):
                known[expert][name] = mean
        remember("magnitudes", key, known)
    return known


@torch.no_grad()
def _means(segments: Sequence[Segment]) -> list[float]:
    """Per source, over all segments of a parameter."""
    sums = [0.0] * len(segments[0].sources)
    elements = sum(segment.base.numel() for segment in segments)
    for segment in segments:
        for lo, hi in row_chunks(segment.base.shape, LOW_RANK_CHUNK):
            part = segment if not segment.base.ndim else segment.rows(lo, hi)
            for column, source in enumerate(part.sources):
                if source is None:
                    continue
                if isinstance(source, LowRank):
                    delta = torch.zeros(part.base.shape)
                    add_low_rank(delta, [(source, 1.0)])
                else:
                    delta = source.tensor.float() - part.base.float() if source.absolute else source.tensor.float()
                sums[column] += float(delta.abs().sum(dtype=torch.float64))
    return [total / max(elements, 1) for total in sums]
