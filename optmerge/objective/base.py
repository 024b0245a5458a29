"""What a term is: one number per example, out of what the model says.

    class Margin(ModelTerm):
        name = "margin"
        ...
        def per_example(self, outputs, batch, teacher):
            return mean_per_example(by_rows(self._margin, scored_logits(outputs.logits, batch)), batch)

A *row* is one prediction: a classifier's for an example, or a language model's for one scored token. A term computes
per row, in fp32 (fp64 for fp64 logits), and a language model's example gets the mean over its scored tokens. Rows never
see each other, so neither the size of a batch nor its padding can change a value.

A *summary* term is no mean over examples but a function of such means: it gives each example's statistics, and
`ModelTerm.finish` makes the value of their means over all examples of a split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from optmerge.calibration.batches import Batch
from optmerge.config.base import Strict
from optmerge.errors import ModelError
from optmerge.objective.outputs import Outputs

if TYPE_CHECKING:
    from optmerge.objective.teacher import TeacherBatch

Need = Literal["labels", "teacher", "hidden"]
CHUNK = 1 << 24  # logits converted to fp32 at a time: 64 MiB, so that a large vocabulary is never whole in fp32


class ModelTerm(ABC):
    """Judges a model on examples; raw, in its own unit, not normalised.

    Attributes:
        name: What search files, trajectories and tables call it.
        needs: What must be given beside the logits: the true classes, the expert's outputs, layers' hidden states.
        differentiable: Whether it has a useful gradient.
        higher_is_better: Whether a good model has a high value.
        unit: Of its values.
        paper: Where it is from.
        summary: Whether the value is a function of means over examples (`finish`) rather than such a mean.
        config: Its settings; None for a report-only term.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    differentiable: ClassVar[bool]
    higher_is_better: ClassVar[bool]
    unit: ClassVar[str]
    paper: ClassVar[str]
    summary: bool = False

    def __init__(self, config: Strict | None = None) -> None:
        self.config = config

    @abstractmethod
    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """One value per example, or one row of statistics.

        Args:
            outputs: What the model says about the batch, with the hidden states of `layers`.
            batch: What the outputs are for, on their device.
            teacher: The expert's outputs for the batch, where ``needs`` says so.

        Returns:
            fp32[B] (fp64 for fp64 logits), in ``unit``; of a summary term [B, m], each example's statistics.

        Raises:
            ValueError: Something that ``needs`` names is missing.
        """

    def finish(self, mean: Tensor) -> Tensor:
        """The value: the mean itself, save for a summary term.

        Args:
            mean: The mean of `per_example` over all examples of a task's split: a scalar, [m] for a summary term.

        Returns:
            A scalar in ``unit``, differentiable by ``mean``.
        """
        return mean

    def layers(self, count: int) -> tuple[int, ...]:
        """Which transformer layers' outputs `per_example` reads, of ``count``; none by default."""
        return ()


def scored_logits(logits: Tensor, batch: Batch) -> Tensor:
    """The logits that count, one row per prediction: [N, C], where N = B for a classifier."""
    if batch.rows is None:
        return logits
    return logits.reshape(-1, logits.shape[-1]).index_select(0, batch.rows)


def attended(batch: Batch, states: Tensor, *, decoder: bool = False) -> Tensor:
    """Which places of hidden states a model attends to: all of them, where nothing is padded.

    Args:
        batch: What the states are for.
        states: [B, T, H].
        decoder: Whether they are a decoder's whose model has an encoder too.

    Returns:
        bool[B, T].

    Raises:
        ModelError: The states are not of the batch's tokens.
    """
    if batch.places is not None:  # examples share rows; padding is at place 0, as one example's first token is
        packed = batch.places.view(states.shape[:2]) > 0
        packed[:, 0] = True
        return packed
    mask = batch.inputs.get("decoder_attention_mask" if decoder else "attention_mask")
    if len(states) != batch.size or (mask is not None and mask.shape != states.shape[:2]):
        raise ModelError(
            f"A layer whose hidden states are asked for gives {list(states.shape)} for {batch.size} examples of "
            f"{list(batch.inputs[min(batch.inputs)].shape[1:])}, so its places are not theirs (as in a vision tower "
            "beside a language model). Name other layers in the objective."
        )
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return mask.bool()


def targets(batch: Batch, term: str) -> Tensor:
    """The true class of every row: int64[N].

    Raises:
        ValueError: The batch has none.
    """
    if batch.targets is None:
        raise ValueError(f"term {term} needs labels, and this batch has none")
    return batch.targets


def needed(teacher: TeacherBatch | None, term: str) -> TeacherBatch:
    """The teacher, which must be there.

    Raises:
        ValueError: It is not.
    """
    if teacher is None:
        raise ValueError(f"term {term} needs the expert's outputs, and none were given")
    return teacher


def mean_per_example(values: Tensor, batch: Batch) -> Tensor:
    """Rows' values [N, ...] as examples' [B, ...]: themselves, or the mean over an example's scored tokens."""
    if batch.scored is None or batch.rows is None:
        return values
    rest = values.shape[1:]
    spread = values.new_zeros(batch.scored.numel(), *rest).index_copy(0, batch.rows, values)
    return spread.view(*batch.scored.shape, *rest).sum(1) / rows_per_example(batch, values).view(-1, *[1] * len(rest))


def rows_per_example(batch: Batch, like: Tensor) -> Tensor:
    """How many rows each example has, at least 1: [B], in the dtype of ``like`` and on its device."""
    if batch.scored is None:
        return like.new_ones(batch.size)
    return batch.scored.sum(1).clamp(min=1).to(like.dtype)


def example_of_rows(batch: Batch, like: Tensor) -> Tensor:
    """Which of the batch's examples each row belongs to: int64[N], on the device of ``like``."""
    if batch.rows is None or batch.scored is None:
        return torch.arange(batch.size, device=like.device)
    return batch.rows // batch.scored.shape[1]


def rows_at_once(classes: int) -> int:
    """How many rows of logits are converted to fp32 together."""
    return max(1, CHUNK // max(1, classes))


def by_rows(function: Callable[..., Tensor], logits: Tensor, *others: Tensor | None) -> Tensor:
    """Apply ``function(logits, *others) -> [N, ...]`` chunk by chunk of rows, with the logits in the working precision.

    Where there is more than one chunk and a gradient is wanted, a chunk is computed again in the backward pass rather
    than its intermediate values be kept.

    Args:
        function: Takes rows of logits in fp32 (or fp64) and the same rows of the others.
        logits: [N, C].
        others: [N, ...] each, or None.
    """
    pieces = list(pieces_by_rows(function, logits, *others))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def pieces_by_rows(function: Callable[..., Tensor], logits: Tensor, *others: Tensor | None) -> Iterator[Tensor]:
    """What `by_rows` puts together, chunk by chunk of `rows_at_once` rows."""
    rows = rows_at_once(logits.shape[-1])
    if len(logits) <= rows:
        yield function(precise(logits), *others)
        return
    split = [[None] * -(-len(logits) // rows) if other is None else torch.split(other, rows) for other in others]
    again = torch.is_grad_enabled() and logits.requires_grad

    def on_chunk(chunk: Tensor, *rest: Tensor | None) -> Tensor:
        return function(precise(chunk), *rest)

    for chunk, *rest in zip(torch.split(logits, rows), *split, strict=True):
        if again:
            yield checkpoint(on_chunk, chunk, *rest, use_reentrant=False, preserve_rng_state=False)
        else:
            yield on_chunk(chunk, *rest)


def precise(logits: Tensor) -> Tensor:
    """The logits in the working precision: fp32, or fp64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
