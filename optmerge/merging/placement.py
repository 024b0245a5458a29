"""What of base and directions is kept on an accelerator; the rest is streamed to it chunk by chunk (`streaming`).

placement = Placement(base=True, directions=frozenset({0, 1}))
segment = placement.place(segment, torch.device("cuda"))
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from optmerge.merging.sources import AnySource, LowRank, Segment, Source
from optmerge.models.device import to_device


@dataclass(frozen=True, slots=True)
class Placement:
    """What is resident.

    Attributes:
        base: Whether the base's values are.
        directions: Columns of the coefficient table whose dense deltas are, in the type that they are stored in.
    """

    base: bool = False
    directions: frozenset[int] = frozenset()

    def place(self, segment: Segment, device: torch.device) -> Segment:
        """The segment with its resident tensors on the device; one that is there as a whole is to be kept."""
        sources = tuple(
            self._place(source, device, column in self.directions) for column, source in enumerate(segment.sources)
        )
        base = to_device(segment.base, device) if self.base else segment.base
        dense = {column for column, source in enumerate(segment.sources) if isinstance(source, Source)}
        temporary = segment.temporary and not (self.base and dense <= self.directions)
        return replace(segment, base=base, sources=sources, temporary=temporary)

    def _place(self, source: AnySource, device: torch.device, resident: bool) -> AnySource:
        if isinstance(source, LowRank):
            return LowRank(to_device(source.b, device), to_device(source.a, device), source.scaling, source.exact)
        if isinstance(source, Source) and resident:
            return Source(to_device(source.tensor, device), source.absolute)
        return source
