"""What each device of a spread model holds of a search's memory.

    division = Division(spread, weights, budgets, judged=logits)
    division.of({"model": 140e9, "activations": 20e9, ...})    # of every device, part -> bytes
    division.fits(parts)

Weights are counted where they are. What passes through layers is divided as their weights are; what is made of logits
is on the first device, where outputs come back to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optmerge.models.spread import Spread

if TYPE_CHECKING:
    from optmerge.calibration.data import Calibration
    from optmerge.models.family import Family

LOGIT_BYTES = 16  # logits, their log-probabilities, the teacher's and a gradient: four values of fp32 are alive at once
PASSES = ("activations", "gradients and activations")
EVERYWHERE = ("buffers",)


@dataclass(frozen=True)
class DeviceMemory:
    """What one of several devices holds at its peak, in bytes.

    Attributes:
        device: Its name.
        weights: Of the model.
        needed: With all else.
        budget: What may be used.
    """

    device: str
    weights: int
    needed: int
    budget: int


class Division:
    """Divides the parts of a memory plan.

    Args:
        spread: The model's devices.
        weights: Parameter -> bytes.
        budgets: Of every device, bytes that may be used.
        judged: Bytes of an evaluation that logits and what is made of them take.
    """

    def __init__(self, spread: Spread, weights: Mapping[str, int], budgets: Sequence[int], *, judged: int) -> None:
        self._spread = spread
        self._budgets = tuple(budgets)
        self._judged = judged
        self.weights = [0] * len(spread.devices)
        for name, size in weights.items():
            self.weights[spread.number_of(name)] += size

    def of(self, parts: Mapping[str, int]) -> list[dict[str, int]]:
        """Of every device, part -> bytes; a part that every device has, such as its buffers, counts for each.

        >>> import torch
        >>> two = Spread((torch.device("meta"),) * 2, {"": 1, "a": 0})
        >>> division = Division(two, {"a.weight": 30, "b.weight": 10}, [100, 100], judged=8)
        >>> division.of({"model": 40, "activations": 48, "buffers": 5, "teacher outputs": 7})[1]
        {'model': 10, 'activations': 10, 'buffers': 5, 'teacher outputs': 0}
        """
        total = max(1, sum(self.weights))
        divided: list[dict[str, int]] = [{} for _ in self.weights]
        for part, size in parts.items():
            passing = size - min(self._judged, size)
            for mine, weights in zip(divided[1:], self.weights[1:], strict=True):
                if part == "model":
                    mine[part] = weights
                elif part in PASSES:
                    mine[part] = passing * weights // total
                else:
                    mine[part] = size if part in EVERYWHERE else 0
            divided[0][part] = size if part in EVERYWHERE else size - sum(mine[part] for mine in divided[1:])
        return divided

    def whole(self, parts: Mapping[str, int]) -> dict[str, int]:
        """The parts of all devices together."""
        return {part: size * len(self.weights) if part in EVERYWHERE else size for part, size in parts.items()}

    def rooms(self, parts: Mapping[str, int]) -> list[int]:
        """What is left of every device's budget; below zero where it does not suffice."""
        needed = [sum(mine.values()) for mine in self._exact(parts)]
        return [budget - size for budget, size in zip(self._budgets, needed, strict=True)]

    def fits(self, parts: Mapping[str, int]) -> bool:
        """Whether every device has room for its share."""
        return min(self.rooms(parts)) >= 0

    def devices(self, parts: Mapping[str, int], taken: Sequence[int]) -> tuple[DeviceMemory, ...]:
        """Of each device, where there are several: with ``taken`` bytes of base and experts on it."""
        if not self._spread.several:
            return ()
        return tuple(
            DeviceMemory(str(device), weights, budget - room + more, budget)
            for device, weights, budget, room, more in zip(
                self._spread.devices, self.weights, self._budgets, self.rooms(parts), taken, strict=True
            )
        )

    def _exact(self, parts: Mapping[str, int]) -> list[dict[str, int]]:
        return self.of(parts) if self._spread.several else [dict(parts)]


def logit_bytes(family: Family, calibration: Calibration, batch_tokens: int) -> int:
    """What the logits of the largest batch take, with what an objective makes of them."""
    largest = 0
    for data in calibration.tasks.values():
        classes = data.num_labels or int(getattr(family.configs[data.expert], "vocab_size", 0) or 0)
        for split in data.splits.values():
            for batch in split.batches(batch_tokens=batch_tokens):
                largest = max(largest, classes * (len(batch.rows) if batch.rows is not None else batch.size))
    return LOGIT_BYTES * largest
