"""Tokenised examples, and the padded batches made of them.

    for batch in split.batches(batch_tokens=4096):
        batch = batch.to(device)
        logits = model(**batch.inputs).logits

Padding is always on the right: attention masks hide it, positions start at 0, and a causal model's earlier tokens
cannot see it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from optmerge.calibration.encode import EncodedText
from optmerge.records import SplitName


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples, padded to one length.

    Attributes:
        inputs: What the model's forward takes: int64[B, T] each (``input_ids``, ``attention_mask``, ...).
        positions: int64[B], each example's position in its split. Always on the CPU.
        scored: bool[B, T] for language models: True at t where logits[:, t], the prediction of input_ids[:, t + 1],
            counts. Never True at the last t.
        labels: int64[B], classes of the head; None where labels may not be read or there are none.
        rows: int64[N], where ``scored`` is True in the flattened [B * T], so that gathering them needs no
            synchronisation with the device. Made from ``scored``.
    """

    inputs: dict[str, Tensor]
    positions: Tensor
    scored: Tensor | None = None
    labels: Tensor | None = None
    rows: Tensor | None = None

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
        return Batch(inputs, self.positions, move(self.scored), move(self.labels), move(self.rows))


@dataclass(frozen=True)
class Padding:
    """What fills the end of shorter examples."""

    token: int
    segment: int = 0


class Split:
    """One split of one task: n tokenised examples in the order of their content hashes.

    Attributes:
        name: fit, select or report.
        keys: Content hash of every example.
        has_labels: Whether terms that read labels can be computed: a classifier's labels are there, or a language
            model's own tokens may be used as the truth.
    """

    def __init__(
        self,
        name: SplitName,
        keys: Sequence[str],
        encoded: Sequence[EncodedText],
        *,
        padding: Padding,
        labels: Sequence[int] | None = None,
        has_labels: bool = False,
    ) -> None:
        self.name: SplitName = name
        self.keys = tuple(keys)
        self.has_labels = has_labels
        self._padding = padding
        self._lengths = torch.tensor([len(text.ids) for text in encoded], dtype=torch.int64)
        self._starts = self._lengths.cumsum(0) - self._lengths
        self._ids = _flat([text.ids for text in encoded], torch.int32)
        segmented = bool(encoded) and encoded[0].types is not None
        self._types = _flat([text.types or [] for text in encoded], torch.int32) if segmented else None
        completed = bool(encoded) and encoded[0].completion is not None
        self._completion = _flat([text.completion or [] for text in encoded], torch.bool) if completed else None
        self._labels = None if labels is None else torch.tensor(labels, dtype=torch.int64)
        self._cached: dict[int, list[Batch]] = {}

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.keys)

    @property
    def tokens(self) -> int:
        """Number of tokens, padding not counted."""
        return len(self._ids)

    @cached_property
    def sha256(self) -> str:
        """Hash of what a model is given, in order: ids, segments and completion marks, but no labels."""
        digest = hashlib.sha256(self._lengths.numpy().astype("<i8").tobytes())
        for tensor in (self._ids, self._types, self._completion):
            if tensor is not None:
                digest.update(tensor.numpy().astype("<i4").tobytes())
        return digest.hexdigest()

    @property
    def labels_sha256(self) -> str:
        """Hash of the labels that are kept (of nothing, if none are)."""
        content = b"" if self._labels is None else self._labels.numpy().astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()

    def batches(self, *, batch_tokens: int, positions: Sequence[int] | None = None) -> list[Batch]:
        """Padded batches, longest examples first; none has more than ``batch_tokens`` tokens unless it is one example.

        Args:
            batch_tokens: Most padded tokens in a batch.
            positions: Examples to take; None takes all and gives the same list of batches at every call.
        """
        if positions is None:
            if batch_tokens not in self._cached:
                self._cached[batch_tokens] = self._make(np.arange(self.size), batch_tokens)
            return self._cached[batch_tokens]
        return self._make(np.asarray(positions, dtype=np.int64), batch_tokens)

    def _make(self, positions: np.ndarray[tuple[int], np.dtype[np.int64]], batch_tokens: int) -> list[Batch]:
        if positions.size and (positions.min() < 0 or positions.max() >= self.size):
            raise IndexError(f"positions reach from {positions.min()} to {positions.max()}; the split has {self.size}")
        lengths = self._lengths.numpy()[positions]
        order = np.lexsort((positions, -lengths))
        ordered, longest = positions[order], lengths[order]
        batches, begin = [], 0
        while begin < len(ordered):
            count = max(1, batch_tokens // max(1, int(longest[begin])))
            batches.append(self._collate(torch.from_numpy(ordered[begin : begin + count].copy())))
            begin += count
        return batches

    def _collate(self, positions: Tensor) -> Batch:
        lengths = self._lengths[positions]
        within = torch.arange(int(lengths.max()))
        present = within < lengths[:, None]  # [B, T]
        place = (self._starts[positions][:, None] + within).clamp_(max=len(self._ids) - 1)
        inputs = {"input_ids": self._ids[place].long().masked_fill_(~present, self._padding.token)}
        inputs["attention_mask"] = present.long()
        if self._types is not None:
            inputs["token_type_ids"] = self._types[place].long().masked_fill_(~present, self._padding.segment)
        scored = None
        if self._completion is not None:
            completion = self._completion[place] & present
            scored = torch.zeros_like(completion)
            scored[:, :-1] = completion[:, 1:]  # the prediction of a token stands one place before it
        labels = None if self._labels is None else self._labels[positions]
        return Batch(inputs, positions, scored, labels)


def _flat(lists: Sequence[Sequence[int | bool]], dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for values in lists for value in values], dtype=dtype)
