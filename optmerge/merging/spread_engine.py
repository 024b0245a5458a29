"""The engine of a model that is spread over several devices: one engine for each, over the parameters that are there.

    engine = engine_over(spread.parts(resident.parameters), deltas.segments, group_of)
    engine.apply(table)                      # float64[G, D], as with one engine
    with engine.gradient() as gradient:
        loss.backward()
    gradient.table()                         # the sum of the devices' tables

A parameter is on one device, so that nothing of a merge depends on how the model is spread. Work is queued on every
device before any is waited for; what is streamed from host memory is fed to one device after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock

import numpy as np
import numpy.typing as npt
from torch import nn

from optmerge.merging.coefficients import Table
from optmerge.merging.engine import Engine, Form, GradientGatherer
from optmerge.merging.placement import Placement
from optmerge.merging.slices import Cut
from optmerge.merging.sources import Segment


class SpreadEngine:
    """What `Engine` is, of several devices.

    Attributes:
        shards: The engine of every device, all with the whole model's groups.
    """

    def __init__(self, shards: Sequence[Engine]) -> None:
        self.shards = tuple(shards)

    @property
    def form(self) -> Form:
        """How gradients are gathered, on all devices alike."""
        return self.shards[0].form

    @property
    def num_groups(self) -> int:
        """Rows of the coefficient table."""
        return self.shards[0].num_groups

    @property
    def num_directions(self) -> int:
        """Columns of the coefficient table."""
        return self.shards[0].num_directions

    def regrouped(self, group_of: Mapping[str, int], cuts: Mapping[str, Cut] | None = None) -> SpreadEngine:
        """See `Engine.regrouped`."""
        groups = count_groups(group_of, cuts)
        return SpreadEngine([shard.regrouped(group_of, cuts, num_groups=groups) for shard in self.shards])

    def along(
        self,
        segments: Callable[[str], list[Segment]],
        group_of: Mapping[str, int],
        cuts: Mapping[str, Cut] | None = None,
    ) -> SpreadEngine:
        """See `Engine.along`."""
        groups, guarded = count_groups(group_of, cuts), _one_at_a_time(segments)
        return SpreadEngine([shard.along(guarded, group_of, cuts, num_groups=groups) for shard in self.shards])

    def apply(self, table: Table) -> int:
        """See `Engine.apply`; nothing is waited for between two devices."""
        return sum(shard.apply(table) for shard in self.shards)

    def forget(self) -> None:
        """See `Engine.forget`."""
        for shard in self.shards:
            shard.forget()

    @contextmanager
    def gradient(
        self, groups: npt.ArrayLike | None = None, columns: Sequence[int] | None = None
    ) -> Iterator[SpreadGatherer]:
        """See `Engine.gradient`."""
        with ExitStack() as stack:
            yield SpreadGatherer([stack.enter_context(shard.gradient(groups, columns)) for shard in self.shards])


class SpreadGatherer:
    """What `SpreadEngine.gradient` yields; ``table()`` is dL/dcoefficients once the block has ended."""

    def __init__(self, shards: Sequence[GradientGatherer]) -> None:
        self._shards = tuple(shards)

    def table(self) -> Table:
        """The sum of the devices' tables in their order, float64[G, D]; one synchronisation for each."""
        total: Table = np.sum([shard.table() for shard in self._shards], axis=0)
        return total


AnyEngine = Engine | SpreadEngine


def engine_over(
    parts: Sequence[Mapping[str, nn.Parameter]],
    segments: Callable[[str], list[Segment]],
    group_of: Mapping[str, int],
    *,
    form: Form = "accumulate",
    placement: Placement | None = None,
    cuts: Mapping[str, Cut] | None = None,
) -> AnyEngine:
    """The engine of resident parameters that are on one device or on several; see `Engine` for the arguments.

    Args:
        parts: What each device holds.
        segments: Name -> the parameter's segments.
        group_of: Name -> row of the coefficient table, of all parameters.
        form: How gradients are gathered.
        placement: What every device keeps of its parameters' sources.
        cuts: Name -> how a parameter is cut, of all parameters.
    """
    if len(parts) == 1:
        return Engine(parts[0], segments, group_of, form=form, placement=placement, cuts=cuts)
    groups, guarded = count_groups(group_of, cuts), _one_at_a_time(segments)
    return SpreadEngine(
        [
            Engine(part, guarded, group_of, form=form, placement=placement, cuts=cuts, num_groups=groups)
            for part in parts
        ]
    )


def _one_at_a_time(segments: Callable[[str], list[Segment]]) -> Callable[[str], list[Segment]]:
    """Backward passes call the engines from a thread for each device, and what gives segments knows of none."""
    lock = Lock()

    def guarded(name: str) -> list[Segment]:
        with lock:
            return segments(name)

    return guarded


def count_groups(group_of: Mapping[str, int], cuts: Mapping[str, Cut] | None) -> int:
    """Rows of the coefficient table of all parameters.

    >>> count_groups({"a": 0, "b": 3, "c": 1}, None)
    4
    """
    return max(first + (cuts[name].count if cuts and name in cuts else 1) for name, first in group_of.items())
