"""Sizes of an engine's tensor groups, norms of directions' deltas in them, and the angles between deltas.

    sizes = group_sizes(engine)                     # int64[G]
    norms = delta_norms(engine, [0, 1])             # float64[G, 2]
    cosines = delta_cosines(engine, [0, 1])         # float64[G, 2, 2]

One parameter's delta exists at a time; the engine contracts it like a gradient, so that groups are what they are for
coefficients. Norms read each direction twice, cosines each direction once more for every other one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from optmerge.merging.coefficients import Table
from optmerge.merging.engine import Engine
from optmerge.merging.low_rank import add_low_rank
from optmerge.merging.sources import LowRank
from optmerge.merging.spread_engine import AnyEngine


def group_sizes(engine: AnyEngine) -> npt.NDArray[np.int64]:
    """How many elements every group has: int64[G]."""
    sizes = np.zeros(engine.num_groups, dtype=np.int64)
    for shard in engine.shards:
        for name, parameter in shard.parameters.items():
            first, cut = shard.group_of[name], shard.cuts.get(name)
            if cut is None:
                sizes[first] += parameter.numel()
            else:
                sizes[first : first + cut.count] += cut.sizes()
    return sizes


def delta_norms(engine: AnyEngine, columns: Sequence[int]) -> Table:
    """The Frobenius norm of every delta in every group.

    Args:
        engine: Knows groups and directions; its resident values are neither read nor changed.
        columns: Which directions.

    Returns:
        float64[G, C], in the order of ``columns``.
    """
    squares = [_products(engine, column, [column])[:, column] for column in columns]
    norms: Table = np.sqrt(np.stack(squares, axis=1))
    return norms


def delta_cosines(engine: AnyEngine, columns: Sequence[int]) -> npt.NDArray[np.float64]:
    """The cosine between every two deltas in every group; 0 where one of them is zero.

    Args:
        engine: See `delta_norms`.
        columns: Which directions.

    Returns:
        float64[G, C, C], in the order of ``columns``.
    """
    gram = np.stack([_products(engine, column, columns)[:, columns] for column in columns], axis=1)
    norms = np.sqrt(np.einsum("gkk->gk", gram))
    scale = norms[:, :, None] * norms[:, None, :]
    cosines: npt.NDArray[np.float64] = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0.0)
    return cosines


@torch.no_grad()
def _products(engine: AnyEngine, of: int, columns: Sequence[int]) -> Table:
    """The inner products of one direction's delta with others', float64[G, D]; 0 outside ``columns``."""
    found = [_on_device(shard, of, columns) for shard in engine.shards]  # queued on all before one is waited for
    products: Table = np.sum([out.to("cpu", torch.float64).numpy() for out in found], axis=0)
    return products


def _on_device(engine: Engine, of: int, columns: Sequence[int]) -> torch.Tensor:
    precise = torch.float64 if engine.device.type != "mps" else torch.float32
    out = torch.zeros(engine.num_groups, engine.num_directions, dtype=precise, device=engine.device)
    for name, parameter in engine.parameters.items():
        delta = torch.zeros(parameter.shape, dtype=engine.accumulate, device=engine.device)
        for segment in engine.segments(name):
            part, source = delta[segment.index], segment.sources[of]
            if isinstance(source, LowRank):
                low = torch.zeros(part.shape, dtype=part.dtype, device=part.device)
                add_low_rank(low, [(source, 1.0)], engine.workspace.factors)
                part.copy_(low)
            elif source is not None:
                part.copy_(source.tensor)
                if source.absolute:
                    part.sub_(segment.base.to(part.device, part.dtype))
        engine.contract_into(out, {name: delta}, columns)
    return out
