"""Encoded examples, and the batches made of them.

    for batch in split.batches(batch_tokens=4096):
        batch = batch.to(device)
        logits = model(**batch.inputs).logits

What the inputs are (token ids, pixels) is known to a kind's `Examples` alone.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from optmerge.records import SplitName

Positions = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples, as a model takes them.

    A *prediction* is a row of logits that counts: a classifier's for an example, or one of a language model's or token
    classifier's many. N is their number, in the order of the flattened logits.

    Attributes:
        inputs: What the model's forward takes (``input_ids``, ``attention_mask``, ...).
        positions: int64[B], each example's position in its split. Always on the CPU.
        scored: bool[B, T], which of the logits [B, T, ...] count; None where there is one prediction per example.
        targets: int64[N], the true class of every prediction: a classifier's label, a language model's next token, a
            token's label. None where they may not be read or there are none.
        rows: int64[N], where ``scored`` is True in the flattened [B * T], so that gathering them needs no
            synchronisation with the device. Made from ``scored``.
        places: int64[B * T], where examples share rows of the inputs: the place of each of their tokens among all
            tokens of the inputs, so that `unpacked` can take the model's outputs apart; None where they do not.
        tokens: What the batch takes of ``batch_tokens``: padded tokens, or patches.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    scored: Tensor | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None
    places: Tensor | None = None
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.scored is not None and self.rows is None:
            object.__setattr__(self, "rows", self.scored.reshape(-1).nonzero().squeeze(1))

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.positions)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; ``positions`` stay on the CPU."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return replace(
            self,
            inputs=inputs,
            scored=move(self.scored),
            targets=move(self.targets),
            rows=move(self.rows),
            places=move(self.places),
        )

    def unpacked(self, values: Tensor) -> Tensor:
        """What a model gives for the inputs' rows, [R, W, ...], as one row per example, [B, T, ...]."""
        if self.places is None:
            return values
        return values.flatten(0, 1).index_select(0, self.places).view(self.size, -1, *values.shape[2:])


class Examples(ABC):
    """The encoded examples of one split, kept compactly.

    Attributes:
        lengths: int64[n, P], how long every example is in each of a model's P padded inputs: tokens, or patches.
    """

    lengths: Tensor

    @abstractmethod
    def collate(self, positions: Tensor) -> Batch:
        """The batch of some examples, int64[B], in their order; ``tokens`` need not be set."""

    @abstractmethod
    def inputs(self) -> Iterable[Tensor]:
        """Everything that a model is given, in order, but no truth: what is hashed."""

    def truth(self) -> Tensor | None:
        """The labels that are kept, int64; None where there are none, or where they are among the inputs."""
        return None

    def unpacked(self) -> Examples:
        """The same examples, none of which shares a row of the inputs with others."""
        return self

    def batches(self, positions: Positions, batch_tokens: int) -> list[Batch]:
        """Batches of the examples at ``positions``, the longest first.

        None has more than ``batch_tokens`` padded tokens, unless it is one example.
        """
        lengths = self.lengths.numpy()[positions]
        order = np.lexsort((positions, -lengths.sum(1)))
        ordered, lengths = positions[order], lengths[order]
        batches, begin = [], 0
        while begin < len(ordered):
            widest, end = lengths[begin], begin + 1
            while end < len(ordered):
                wider = np.maximum(widest, lengths[end])
                if int(wider.sum()) * (end - begin + 1) > batch_tokens:
                    break
                widest, end = wider, end + 1
            batch = self.collate(torch.from_numpy(ordered[begin:end].copy()))
            batches.append(replace(batch, tokens=int(widest.sum()) * (end - begin)))
            begin = end
        return batches


class Split:
    """One split of one task: n encoded examples in the order of their content hashes.

    Attributes:
        name: fit, select or report.
        keys: Content hash of every example.
        examples: What they are.
        has_labels: Whether terms that read labels can be computed: a classifier's labels are there, or a language
            model's own tokens may be used as the truth.
    """

    def __init__(self, name: SplitName, keys: Sequence[str], examples: Examples, *, has_labels: bool = False) -> None:
        self.name: SplitName = name
        self.keys = tuple(keys)
        self.examples = examples
        self.has_labels = has_labels
        self._cached: dict[int, list[Batch]] = {}

    def unpacked(self) -> Split:
        """The same split, with a row of the inputs for every example."""
        examples = self.examples.unpacked()
        return self if examples is self.examples else Split(self.name, self.keys, examples, has_labels=self.has_labels)

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.keys)

    @property
    def tokens(self) -> int:
        """Number of tokens (or patches), padding not counted."""
        return int(self.examples.lengths.sum())

    @cached_property
    def sha256(self) -> str:
        """Hash of what a model is given, in order; labels are no part of it."""
        digest = hashlib.sha256()
        for tensor in self.examples.inputs():
            digest.update(_bytes(tensor))
        return digest.hexdigest()

    @property
    def labels_sha256(self) -> str:
        """Hash of the labels that are kept (of nothing, if none are)."""
        truth = self.examples.truth()
        return hashlib.sha256(b"" if truth is None else _bytes(truth)).hexdigest()

    def batches(self, *, batch_tokens: int, positions: Sequence[int] | None = None) -> list[Batch]:
        """Padded batches, longest examples first; none has more than ``batch_tokens`` tokens unless it is one example.

        Args:
            batch_tokens: Most padded tokens (or patches) in a batch.
            positions: Examples to take; None takes all and gives the same list of batches at every call.
        """
        if positions is None:
            if batch_tokens not in self._cached:
                self._cached[batch_tokens] = self.examples.batches(np.arange(self.size), batch_tokens)
            return self._cached[batch_tokens]
        chosen = np.asarray(positions, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.size):
            raise IndexError(f"positions reach from {chosen.min()} to {chosen.max()}; the split has {self.size}")
        return self.examples.batches(chosen, batch_tokens)


def _bytes(tensor: Tensor) -> bytes:
    """A tensor's values in an order of bytes that does not depend on the machine."""
    array = (tensor.int() if tensor.dtype == torch.bool else tensor).contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
