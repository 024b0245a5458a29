"""Sums of terms over an evaluation's batches, on the device until they are asked for.

tally = Tally(device, per_example=False)
tally.add("topic", {"expert-kl": values}, batch.positions, count)
tally.means()                      # {"topic": {"expert-kl": 0.31}}
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from optmerge.records import Vector


class Tally:
    """Sums (and, if wanted, single values) per task and term, on the device until they are asked for."""

    def __init__(self, device: torch.device, *, per_example: bool) -> None:
        self._device = device
        self._dtype = torch.float64 if device.type != "mps" else torch.float32
        self._per_example = per_example
        self._sums: dict[tuple[str, str], torch.Tensor] = {}
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, task: str, values: Mapping[str, torch.Tensor], positions: torch.Tensor, count: int) -> None:
        """Add a batch's values [B], whose examples stand at ``positions`` of ``count``."""
        self._counts[task] = count
        for name, value in values.items():
            key = (task, name)
            if key not in self._sums:
                self._sums[key] = torch.zeros((), dtype=self._dtype, device=self._device)
                if self._per_example:
                    self._kept[key] = torch.empty(count, dtype=self._dtype, device=self._device)
            self._sums[key].add_(value.sum(dtype=self._dtype))
            if self._per_example:
                self._kept[key][positions.to(self._device, non_blocking=True)] = value.to(self._dtype)

    def means(self) -> dict[str, dict[str, float]]:
        """Task -> term -> mean; a synchronisation with the device."""
        means: dict[str, dict[str, float]] = {}
        totals = torch.stack(list(self._sums.values())).tolist()
        for (task, name), total in zip(self._sums, totals, strict=True):
            means.setdefault(task, {})[name] = total / self._counts[task]
        return means

    def arrays(self) -> dict[str, dict[str, Vector]]:
        """Task -> term -> float64[n]."""
        arrays: dict[str, dict[str, Vector]] = {}
        for (task, name), tensor in self._kept.items():
            arrays.setdefault(task, {})[name] = tensor.to("cpu", torch.float64).numpy()
        return arrays
