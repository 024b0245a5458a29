"""Chunks of mapped tensors on their way to an accelerator, through pinned memory, ahead of their use.

    host = HostStream(device, chunk_elements)
    here = host.fetch(mapped[lo:hi])             # on the device; queue what reads it before the next fetch but one

A fetch copies the chunk into a pinned buffer and queues its transfer on a stream of its own, which the compute stream
waits for. The host goes on at once: while the device works on one chunk, the next is already being read from the page
cache and transferred. On the CPU, and for tensors that are on the device already, a fetch is the tensor itself.
"""

from __future__ import annotations

import torch

SLOTS = 4  # chunks in flight: two that kernels may still read, one in transfer, one being filled


class HostStream:
    """A ring of pinned buffers and their counterparts on a CUDA device."""

    def __init__(self, device: torch.device, elements: int) -> None:
        self.device = device
        self._bytes = elements * 4  # of the widest type that is streamed
        self._ring: list[_Slot] = []
        self._fetches = 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device once something has been streamed."""
        return SLOTS * self._bytes if self.device.type == "cuda" else 0

    def fetch(self, chunk: torch.Tensor) -> torch.Tensor:
        """The chunk on the device, in its own dtype; never write to it."""
        if chunk.device == self.device:
            return chunk
        size = chunk.numel() * chunk.dtype.itemsize
        if self.device.type != "cuda" or size > self._bytes:  # wider than fp32: a checkpoint in fp64
            return chunk.to(self.device)
        if not self._ring:
            self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._ring = [_Slot(self._bytes, self.device) for _ in range(SLOTS)]
            # The memory may have been given back while kernels that use it are still queued.
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        slot = self._ring[self._fetches % SLOTS]
        compute = torch.cuda.current_stream(self.device)
        slot.queued.record(compute)
        if self._fetches >= 2:
            # What was queued before the fetch before the last includes all that reads this slot's old content.
            self._stream.wait_event(self._ring[(self._fetches - 2) % SLOTS].queued)
        self._fetches += 1
        slot.arrived.synchronize()  # the pinned side is free once its last transfer is done
        pinned, there = slot.pinned[:size].view(chunk.dtype), slot.there[:size].view(chunk.dtype)
        pinned.copy_(chunk)
        with torch.cuda.stream(self._stream):
            there.copy_(pinned, non_blocking=True)
            slot.arrived.record(self._stream)
        compute.wait_event(slot.arrived)
        return there


class _Slot:
    """One pinned buffer, its counterpart on the device, and how far both streams have come with it."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        self.there = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.queued = torch.cuda.Event()  # type: ignore[no-untyped-call]
