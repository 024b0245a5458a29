"""Chunks on their way to an accelerator: who waits for whom, with CUDA's streams and events in simulation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from optmerge.merging.sources import Segment, Source
from optmerge.merging.streaming import SLOTS, HostStream
from optmerge.merging.writing import Workspace, contract, write_merge

CUDA = torch.device("cuda", 0)
Work = set[int]  # numbers of pieces of work


@dataclass(eq=False)
class Stream:
    """Work that is certainly done before whatever is queued next."""

    done: Work = field(default_factory=set)

    def wait_event(self, event: Event) -> None:
        self.done |= event.done

    def wait_stream(self, other: Stream) -> None:
        self.done |= other.done


class Machine:
    """A host and a device; its streams run ahead or lag behind as they like, so only what is waited for counts."""

    def __init__(self) -> None:
        self.host: Work = set()
        self.compute = Stream()
        self.current = self.compute
        self.count = 0

    def queue(self, stream: Stream) -> int:
        self.count += 1
        stream.done.add(self.count)
        return self.count

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        self.current, before = stream, self.current
        yield
        self.current = before


class Event:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.done: Work = set()

    def record(self, stream: Stream) -> None:
        self.done = set(stream.done)

    def synchronize(self) -> None:
        self.machine.host |= self.done


class Buffer:
    """Memory, pinned or on the device; every write asserts that nobody still needs what it overwrites."""

    def __init__(self, machine: Machine, *, pinned: bool) -> None:
        self.machine, self.pinned = machine, pinned
        # On the device the allocator gives memory back whose last use is queued on the compute stream.
        self.used_by: Work = set() if pinned else {machine.queue(machine.compute)}
        self.written_by = 0
        self.content: torch.Tensor | None = None

    def __getitem__(self, part: slice) -> Buffer:
        return self

    def view(self, dtype: torch.dtype) -> Buffer:
        return self

    def copy_(self, source: Any, *, non_blocking: bool = False) -> None:
        if self.pinned:
            assert self.used_by <= self.machine.host, "a transfer may still read the pinned buffer"
            self.content = source
            return
        stream = self.machine.current
        assert stream is not self.machine.compute, "transfers overlap with computing"
        assert self.used_by <= stream.done, "a kernel may still use the memory"
        self.written_by = self.machine.queue(stream)
        self.used_by = set()
        self.content = source.content
        source.used_by = {self.written_by}

    def read(self, expected: torch.Tensor) -> None:
        """A kernel on the compute stream."""
        assert self.written_by in self.machine.compute.done, "the chunk may not have arrived"
        assert self.content is expected
        self.used_by.add(self.machine.queue(self.machine.compute))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    def empty(*size: int, pin_memory: bool = False, **options: object) -> Buffer:
        return Buffer(made, pinned=pin_memory)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "Event", lambda: Event(made))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.compute)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    return made


@pytest.mark.parametrize("late", [0, 1])
def test_no_buffer_is_overwritten_while_it_is_needed(machine: Machine, late: int) -> None:
    """Kernels are queued at once, or as late as is allowed: after the next fetch and before the one behind it."""
    host = HostStream(CUDA, 8)
    chunks = list(torch.zeros(4 * SLOTS, 8))
    fetched: list[Any] = []
    for number, chunk in enumerate(chunks):
        fetched.append(host.fetch(chunk))
        if number >= late:
            fetched[number - late].read(chunks[number - late])
    assert len({id(buffer) for buffer in fetched}) == SLOTS


def test_the_host_runs_ahead_by_the_ring_and_no_further(machine: Machine) -> None:
    host = HostStream(CUDA, 8)
    for _ in range(SLOTS):
        host.fetch(torch.zeros(8))
    assert not machine.host
    host.fetch(torch.zeros(8))
    assert machine.host


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_is_what_resident_is(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optmerge.merging.writing.DEVICE_CHUNK", 1 << 16)
    generator = torch.Generator().manual_seed(0)
    base, gradient, *experts = (torch.randn(2_000_003, generator=generator).to(dtype) for _ in range(5))
    results = []
    for device in (torch.device("cpu"), CUDA):
        workspace = Workspace(CUDA, torch.float32)
        workspace.fused = None
        segment = Segment((), base.to(device), tuple(Source(e.to(device), absolute=True) for e in experts))
        out, sums = torch.empty_like(base, device=CUDA), torch.zeros(3, dtype=torch.float64, device=CUDA)
        write_merge(out, segment, [0.3, 0.4, 0.5], workspace)
        contract(gradient.to(CUDA), segment, [0, 1, 2], sums, workspace)
        results.append((out.cpu(), sums.cpu()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-3)
