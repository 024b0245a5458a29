"""What a model's gradients on one expert's data are summed up to: Fisher information, saliency, output Gram matrices.

    gradients = ExpertGradients("topics", forward, {"news": split}, device=device, batch_tokens=4096, seed=0)
    for part in gradients.of("fisher", resident.parameters): ...

The model in memory is the expert, or the base for the saliency that LED-Merging asks of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from optmerge.calibration.batches import Batch, Split
from optmerge.config.methods import Need
from optmerge.config.methods.base import LABELLED
from optmerge.merging.gradient_statistics import collect_saliency, collect_squares
from optmerge.merging.output_statistics import BatchLosses, collect_output_grams
from optmerge.merging.statistics import Inputs
from optmerge.runner.likelihoods import generator_for, predicted, true_loss

if TYPE_CHECKING:
    from optmerge.runner.forward import Forward

Parameters = Mapping[str, nn.Parameter]
Parts = Iterator[dict[str, Tensor]]
Scalars = Callable[[Tensor, Batch], Sequence[Tensor]]


@dataclass(frozen=True)
class ExpertGradients:
    """See the module.

    Attributes:
        expert: Whose data.
        forward: Runs the model on them.
        splits: The expert's tasks -> the examples.
        device: Where the model is.
        batch_tokens: Size of a batch, where examples may share one.
        seed: Of predictions that are drawn.
    """

    expert: str
    forward: Forward
    splits: Mapping[str, Split]
    device: torch.device
    batch_tokens: int
    seed: int

    def of(self, need: Need, parameters: Parameters) -> Parts:
        """The statistic that goes by this name, see `optmerge.merging.methods.base.Models.statistic`."""
        if need == "fisher":
            return self.fisher(parameters)
        if need == "output-grams":
            return self.output_grams(parameters)
        assert need in LABELLED, need
        return self.saliency(parameters)

    def fisher(self, parameters: Parameters) -> Parts:
        """The diagonal of the Fisher matrix, in the mean over examples; see `collect_squares`."""

        def losses() -> Iterable[Sequence[Tensor]]:
            generator = generator_for(self.seed, self.expert)
            return self._one_by_one(lambda logits, batch: predicted(logits, batch, generator))

        return collect_squares(parameters, losses)

    def saliency(self, parameters: Parameters) -> Parts:
        """|theta dL/dtheta| of the labels' loss, in the mean over examples; see `collect_saliency`."""
        return collect_saliency(parameters, lambda: self._one_by_one(true_loss))

    def output_grams(self, parameters: Parameters) -> Parts:
        """Gram matrices of the gradients by layers' outputs; see `collect_output_grams`."""
        return collect_output_grams(self.forward.model(next(iter(self.splits))), parameters, self._by_batches)

    def _one_by_one(self, scalars: Scalars) -> Iterator[Sequence[Tensor]]:
        for task, split in self.splits.items():
            alone = split.unpacked()
            for position in range(alone.size):  # made one at a time, and not kept
                (batch,) = alone.batches(batch_tokens=1, positions=[position])
                moved = batch.to(self.device)
                yield scalars(self.forward.outputs(task, moved).logits, moved)

    def _by_batches(self) -> Iterator[tuple[Inputs, BatchLosses]]:
        generator = generator_for(self.seed, self.expert)
        for task, split in self.splits.items():
            for batch in split.unpacked().batches(batch_tokens=self.batch_tokens):
                moved = batch.to(self.device)
                yield moved.inputs, self._losses(task, moved, generator)

    def _losses(self, task: str, batch: Batch, generator: torch.Generator) -> BatchLosses:
        def losses(inputs: Inputs) -> Sequence[Tensor]:
            logits = self.forward.model(task)(**inputs, **self.forward.options).logits
            if batch.scored is not None:  # a decoder's may have been given one more place
                logits = logits[:, : batch.scored.shape[1]]
            return predicted(logits, batch, generator)

        return losses
