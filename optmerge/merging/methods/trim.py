"""Trim: keep the largest entries of the task vectors, exactly as many as asked for (stage C).

round(density * size) entries are kept, equal magnitudes in flat order. Over what they are chosen is the scope, and
changes results more than the method does: with two tensors whose task vectors differ tenfold in scale, the global top
20 % keeps hardly anything of the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from optmerge.config.methods import Scope
from optmerge.merging.methods.base import Models
from optmerge.merging.methods.selection import Threshold, Values, just_below, largest
from optmerge.merging.methods.vectors import Chunk, TaskVectors
from optmerge.records import Progress

Count = Callable[[float, int], int]


def rounded(density: float, size: int) -> int:
    """Entries that are kept: round(density * size), the nearest whole number."""
    return math.floor(density * size + 0.5)


def truncated(density: float, size: int) -> int:
    """The count of mergekit: int(density * size), but at least one entry of a tensor unless the density is 0."""
    return max(1, int(density * size)) if density > 0 else 0


class Trimmed(TaskVectors):
    """The ``density`` largest entries of each task vector; the rest is zero.

    Args:
        vectors: What is trimmed.
        density: Share of the entries that is kept, 0 to 1.
        scope: ``model`` = an expert's whole task vector, ``tensor`` = each parameter by itself, ``row`` = the inputs of
            each output by themselves (``vectors`` must then be by rows), ``stacked`` = one parameter of all experts.
        count: How many of so many entries that is.
        among: Whether a parameter belongs to the model of scope ``model``; all do if None. Only those may be asked for.
    """

    def __init__(
        self,
        vectors: TaskVectors,
        *,
        density: float,
        scope: Scope,
        count: Count = rounded,
        among: Callable[[Models, str], bool] | None = None,
    ) -> None:
        self.vectors = vectors
        self.models = vectors.models
        self.by_rows = vectors.by_rows
        self.density = density
        self.scope = scope
        self.count = count
        self.among = among
        self._model: dict[str, dict[str, Threshold]] = {}
        self._stacked: tuple[str, dict[str, Threshold]] = ("", {})

    def prepare(self, progress: Progress | None = None) -> None:
        """Find the thresholds of scope ``model``, which later calls use; nothing to do for the other scopes."""
        if self.scope == "model" and self.density < 1:
            experts, among = self.models.experts, self.among
            names = [name for name in self.models.names if among is None or among(self.models, name)]
            for done, expert in enumerate(experts):
                if expert not in self._model:
                    thresholds = self._select([(expert, name) for name in names])
                    self._model[expert] = dict(zip(names, thresholds, strict=True))
                if progress:
                    progress("thresholds", done + 1, len(experts))

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`."""
        if self.density >= 1:
            return self.vectors.chunks(expert, name)
        if self.scope == "row":
            return self._rows(expert, name)
        return kept(self.vectors.chunks(expert, name), self._threshold(expert, name))

    def _threshold(self, expert: str, name: str) -> Threshold:
        if self.scope == "model":
            self.prepare()
            return self._model[expert][name]
        if self.scope == "tensor":
            return self._select([(expert, name)])[0]
        last, thresholds = self._stacked
        if last != name:
            experts = self.models.experts
            found = self._select([(other, name) for other in experts])
            thresholds = dict(zip(experts, found, strict=True))
            self._stacked = (name, thresholds)
        return thresholds[expert]

    def _select(self, parts: Sequence[tuple[str, str]]) -> list[Threshold]:
        size = sum(self.models.base(name).numel() for _, name in parts)
        streams = [Entries(self.vectors, expert, name) for expert, name in parts]
        return largest(streams, size, self.count(self.density, size))

    def _rows(self, expert: str, name: str) -> Iterator[Chunk]:
        for chunk in self.vectors.chunks(expert, name):
            rows = chunk.values.view(-1, chunk.values.shape[-1] if chunk.values.ndim else 1)
            keep_largest(rows, self.count(self.density, rows.shape[-1]))
            yield chunk


def keep_largest(rows: torch.Tensor, count: int) -> None:
    """Set to zero, in place, all but the ``count`` largest magnitudes of every row; of equal ones the first are kept.

    Args:
        rows: [rows, n], held as a whole.
        count: At least 0.
    """
    (mask,) = largest_of_rows(rows, count)
    np.copyto(rows.numpy(), 0.0, where=~mask)


def largest_of_rows(rows: torch.Tensor, *counts: int) -> list[NDArray[np.bool_]]:
    """Per count, which entries are among that many largest magnitudes of their row; of equal ones the first are.

    Args:
        rows: [rows, n], held as a whole.
        counts: Each at least 0.

    Returns:
        bool[rows, n] of each count.
    """
    magnitudes, size = np.abs(rows.numpy()), rows.shape[-1]
    ordered = np.sort(magnitudes, axis=-1)  # a tenth of the time of torch's stable order
    masks = []
    for count in counts:
        if not 0 < count < size:
            masks.append(np.full(magnitudes.shape, count > 0))
            continue
        smallest = ordered[:, size - count, None]
        mask = magnitudes >= smallest
        surplus = np.count_nonzero(mask, axis=-1) - count
        (over,) = np.nonzero(surplus)
        if len(over):
            tied = magnitudes[over] == smallest[over]
            left = np.count_nonzero(tied, axis=-1) - surplus[over]
            mask[over] &= ~tied | (np.cumsum(tied, axis=-1) <= left[:, None])
        masks.append(mask)
    return masks


@dataclass(frozen=True, slots=True)
class Entries:
    """One task vector of one parameter, as `largest` reads it."""

    vectors: TaskVectors
    expert: str
    name: str

    def chunks(self) -> Iterator[Values]:
        """See `Stream`."""
        return (chunk.values.view(-1).numpy() for chunk in self.vectors.chunks(self.expert, self.name))

    def sample(self, stride: int) -> Values:
        """See `Stream`."""
        sampled: Values = self.vectors.sample(self.expert, self.name, stride).numpy()
        return sampled


def kept(chunks: Iterator[Chunk], threshold: Threshold) -> Iterator[Chunk]:
    """The chunks with zeros where the threshold does not keep an entry; of those that equal it, the first are kept."""
    above, left = threshold
    for chunk in chunks:
        flat = chunk.values.view(-1)
        equal = np.abs(flat.numpy()) == above if left else np.empty(0, np.bool_)
        tied = int(np.count_nonzero(equal))
        if tied <= left:
            lowest = just_below(above, flat.numpy().dtype) if tied else above
            torch.hardshrink(flat, lowest, out=flat)  # zero unless above, in one pass
        else:
            positions = torch.from_numpy(np.flatnonzero(equal)[:left])
            first = flat[positions]
            torch.hardshrink(flat, above, out=flat)[positions] = first
        left -= min(tied, left)
        yield chunk
