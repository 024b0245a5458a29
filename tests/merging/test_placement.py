"""Placement on a device other than the CPU, with the meta device in the accelerator's place."""

from __future__ import annotations

import torch

from optmerge.merging.placement import Placement
from optmerge.merging.sources import LowRank, Segment, Source

META = torch.device("meta")


def segment(*, temporary: bool = False) -> Segment:
    low = LowRank(torch.ones(4, 2), torch.ones(2, 3), 0.5, lambda: torch.ones(4, 3))
    dense = [Source(torch.ones(4, 3), absolute=True) for _ in range(2)]
    return Segment((), torch.zeros(4, 3), (dense[0], None, low, dense[1]), temporary)


def devices(placed: Segment) -> list[str]:
    first, nothing, low, last = placed.sources
    assert isinstance(first, Source)
    assert isinstance(low, LowRank)
    assert isinstance(last, Source)
    assert nothing is None
    tensors = [placed.base, first.tensor, low.b, low.a, last.tensor]
    return [tensor.device.type for tensor in tensors]


def test_only_factors_are_resident_unless_more_is_asked_for() -> None:
    assert devices(Placement().place(segment(), META)) == ["cpu", "cpu", "meta", "meta", "cpu"]


def test_base_and_directions_are_resident_by_column() -> None:
    placed = Placement(base=True, directions=frozenset({3})).place(segment(), META)
    assert devices(placed) == ["meta", "cpu", "meta", "meta", "meta"]


def test_what_was_assembled_is_kept_once_all_of_it_is_resident() -> None:
    def assembled(placement: Placement) -> bool:
        return placement.place(segment(temporary=True), META).temporary

    assert assembled(Placement(base=True, directions=frozenset({3})))
    assert assembled(Placement(directions=frozenset({0, 3})))
    assert not assembled(Placement(base=True, directions=frozenset({0, 3})))
    assert not Placement().place(segment(), META).temporary
