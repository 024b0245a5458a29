"""How a model is run on a batch: which one judges a task's inputs, with which options, and what is kept of it.

    forward = Forward(family, resident, {"topics": "topics-expert"})
    outputs = forward.outputs("topics", batch.to(device), layers=(5,))

Evaluations, teachers, statistics and the memory simulation all go through it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from optmerge.models.architecture import GENERATIVE
from optmerge.models.device import to_device
from optmerge.models.hidden import layer_outputs
from optmerge.models.roles import decoder_layers, layer_modules
from optmerge.models.zero_shot import ZeroShotClassifier
from optmerge.objective.outputs import Outputs

if TYPE_CHECKING:
    from optmerge.calibration.data import Batch
    from optmerge.models.family import Family
    from optmerge.models.resident import ResidentModel


class Forward:
    """Runs a family's resident models on batches of tasks.

    Args:
        family: Base and experts.
        resident: Holds the models, on any device (the meta device included).
        experts: Task -> the expert that knows it.
        heads: Task -> its zero-shot head; with any, the resident models are vision towers.

    Attributes:
        options: What every forward call gets beside the batch's inputs.
    """

    def __init__(
        self,
        family: Family,
        resident: ResidentModel,
        experts: Mapping[str, str],
        heads: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.options: dict[str, Any] = {"use_cache": False} if family.kind in GENERATIVE else {}
        self._models = {task: resident.model_for(expert) for task, expert in experts.items()}
        self._heads = dict(heads or {})
        for task, head in self._heads.items():
            self._models[task] = ZeroShotClassifier(self._models[task], head)
        self._layers: dict[int, tuple[nn.Module, ...]] = {}  # of each model

    def model(self, task: str) -> nn.Module:
        """The model that judges the inputs of ``task``."""
        return self._models[task]

    def head_sha256(self, task: str) -> str | None:
        """The hash of a zero-shot head; None where the head is the expert's own, or merged."""
        head = self._heads.get(task)
        return None if head is None else tensor_sha256(head)

    def outputs(self, task: str, batch: Batch, layers: Sequence[int] = ()) -> Outputs:
        """What the task's model says about a batch.

        Args:
            task: A task's name.
            batch: On the model's device.
            layers: Transformer layers whose outputs are wanted too.
        """
        model = self.model(task)
        if not layers:
            return Outputs(batch.unpacked(model(**batch.inputs, **self.options).logits))
        if id(model) not in self._layers:
            self._layers[id(model)] = layer_modules(model)
        modules = self._layers[id(model)]
        with layer_outputs(modules, layers) as hidden:
            logits = batch.unpacked(model(**batch.inputs, **self.options).logits)
        states = {layer: batch.unpacked(to_device(value, logits.device)) for layer, value in hidden.items()}
        return Outputs(logits, states, decoder_layers(model, modules).intersection(layers))


def tensor_sha256(tensor: Tensor) -> str:
    """The hash of a tensor's values."""
    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()
