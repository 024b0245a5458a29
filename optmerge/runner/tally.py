"""Sums of terms over an evaluation's batches, on the device until they are asked for.

    tally = Tally(device, {"expert-kl": term}, per_example=False)
    tally.add("topic", {"expert-kl": values}, batch.positions, count)
    tally.watch.add("topic", logits, teacher)
    means, signals = tally.read()      # {"topic": {"expert-kl": 0.31}}, {"top-share/topic": 0.11, ...}

Of a summary term the statistics are summed, and the value is what the term makes of their means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from optmerge.objective.base import ModelTerm
from optmerge.objective.signals import Signals, Watched
from optmerge.records import Vector


@dataclass(frozen=True, eq=False)
class Sums:
    """A tally of some of an evaluation's examples, on the CPU: it can be pickled and added up.

    Attributes:
        values: Task and term -> sum over these examples, a scalar or a summary's [m].
        counts: Task -> examples of the whole evaluation.
        watched: What the predictions warn of.
    """

    values: dict[tuple[str, str], torch.Tensor]
    counts: dict[str, int]
    watched: Watched


class Tally:
    """Sums (and, if wanted, single values) per task and term.

    Args:
        device: Where the values are.
        terms: Every term that will be added, by name.
        per_example: Whether single values are kept too.

    Attributes:
        watch: What the same batches' predictions warn of.
    """

    def __init__(self, device: torch.device, terms: Mapping[str, ModelTerm], *, per_example: bool) -> None:
        self.watch = Signals(device)
        self._device = device
        self._dtype = torch.float64 if device.type != "mps" else torch.float32
        self._terms = dict(terms)
        self._per_example = per_example
        self._sums: dict[tuple[str, str], torch.Tensor] = {}
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, task: str, values: Mapping[str, torch.Tensor], positions: torch.Tensor, count: int) -> None:
        """Add a batch's values, [B] or a summary's [B, m], whose examples stand at ``positions`` of ``count``."""
        self._counts[task] = count
        for name, value in values.items():
            key = (task, name)
            if key not in self._sums:
                self._sums[key] = torch.zeros(value.shape[1:], dtype=self._dtype, device=self._device)
                if self._per_example:
                    shape = (count, *value.shape[1:])
                    self._kept[key] = torch.empty(shape, dtype=self._dtype, device=self._device)
            self._sums[key].add_(value.sum(0, dtype=self._dtype))
            if self._per_example:
                self._kept[key][positions.to(self._device, non_blocking=True)] = value.to(self._dtype)

    def sums(self) -> Sums:
        """What was added so far, on the CPU; of single values nothing."""
        return Sums({key: value.cpu() for key, value in self._sums.items()}, dict(self._counts), self.watch.sums())

    def include(self, sums: Sums) -> None:
        """Add what another tally has of other examples of the same evaluation."""
        self._counts |= sums.counts
        for key, value in sums.values.items():
            known = self._sums.get(key)
            self._sums[key] = value.to(self._device) if known is None else known + value.to(self._device)
        self.watch.include(sums.watched)

    def read(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """Task -> term -> its value (a mean, or what a summary is), and the signals; one synchronisation for both."""
        means: dict[str, dict[str, float]] = {}
        if not self._sums:
            return means, {}
        signals = self.watch.pending()
        found = [self._terms[name].finish(self._mean(task, name)) for task, name in self._sums]
        found += [value.to(self._dtype) for value in signals.values()]
        values = torch.stack(found).tolist()
        for (task, name), value in zip(self._sums, values, strict=False):
            means.setdefault(task, {})[name] = value
        return means, dict(zip(signals, values[len(self._sums) :], strict=True))

    def slopes(self) -> dict[str, dict[str, torch.Tensor]]:
        """Task -> summary term -> the derivative [m] of its value by its means, on the device."""
        slopes: dict[str, dict[str, torch.Tensor]] = {}
        for task, name in self._sums:
            if self._terms[name].summary:
                slopes.setdefault(task, {})[name] = self._finished(task, name)[1]
        return slopes

    def arrays(self) -> dict[str, dict[str, Vector]]:
        """Task -> term -> float64[n], whose mean is the term's value.

        Example i of a summary term has f(s) + (s_i - s) df/ds, with f what the term makes of the means s and s_i the
        example's own statistics: its influence on the value to first order. Resampling these resamples the value as
        Efron's infinitesimal jackknife does (Efron 1982, The Jackknife, the Bootstrap and Other Resampling Plans,
        chapter 6).
        """
        arrays: dict[str, dict[str, Vector]] = {}
        for (task, name), kept in self._kept.items():
            single = kept
            if self._terms[name].summary:
                value, slope = self._finished(task, name)
                single = value + (kept - self._mean(task, name)) @ slope
            arrays.setdefault(task, {})[name] = single.to("cpu", torch.float64).numpy()
        return arrays

    def _mean(self, task: str, name: str) -> torch.Tensor:
        return self._sums[task, name] / self._counts[task]

    def _finished(self, task: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A summary term's value, and its derivative by the means."""
        with torch.enable_grad():
            mean = self._mean(task, name).requires_grad_()
            value = self._terms[name].finish(mean)
            (slope,) = torch.autograd.grad(value, mean)
        return value.detach(), slope
