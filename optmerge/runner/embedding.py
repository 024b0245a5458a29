"""What the base model makes of an example: its last hidden states, averaged over the positions that it attends to.

    embed = BaseEmbedder(family, {"topics": "topics-expert"}, device=device, dtype=dtype, batch_tokens=4096)
    embed("topics", split)                   # fp32[n, H] on the CPU

The model is opened when the first vector is wanted, and goes with the embedder. No label and no expert is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from optmerge.errors import ModelError
from optmerge.models.architecture import GENERATIVE
from optmerge.models.device import to_device
from optmerge.models.resident import ResidentModel
from optmerge.models.spread import Spread
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.calibration.batches import Batch, Split
    from optmerge.config.schema import SearchConfig
    from optmerge.models.family import Family


class BaseEmbedder:
    """Embeds examples with a family's base.

    Args:
        family: Its base is used.
        experts: Task -> the expert that knows it, around whose kind of model the base's values are put.
        device: Where the model runs, or which devices have which parts of it.
        dtype: Of its parameters.
        batch_tokens: Most tokens in a forward pass.
        progress: Told how far it is.

    Attributes:
        key: A hash of what the vectors depend on beside the examples.
    """

    def __init__(
        self,
        family: Family,
        experts: Mapping[str, str],
        *,
        device: torch.device | Spread,
        dtype: torch.dtype,
        batch_tokens: int,
        progress: Progress | None = None,
    ) -> None:
        self._family, self._experts = family, dict(experts)
        self._spread, self._dtype = Spread.of(device), dtype
        self._batch_tokens = batch_tokens
        self._progress = progress
        self._resident: ResidentModel | None = None
        facts = [family.base.sha256(), family.kind, str(dtype), self._spread.main.type, torch.__version__]
        self.key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, task: str, examples: Split) -> Tensor:
        """fp32[n, H] on the CPU, in the order of the split.

        Raises:
            ModelError: The base has no hidden states [examples, positions, width], or some are not finite.
        """
        if self._resident is None:
            self._resident = ResidentModel(self._family, device=self._spread, dtype=self._dtype)
        body, wanted = _reader_of(self._resident.model_for(self._experts[task]))
        batches = examples.unpacked().batches(batch_tokens=self._batch_tokens)
        vectors, positions, done = [], [], 0
        for batch in batches:
            vectors.append(self._pooled(body, wanted, batch.to(self._spread.main)))
            positions.append(batch.positions)
            done += batch.size
            if self._progress:
                self._progress(f"embedding {task}", done, examples.size)
        found = torch.cat(vectors).cpu()
        if not found.isfinite().all():
            raise ModelError(
                f"The base's hidden states of task {task!r} are not finite in {str(self._dtype).removeprefix('torch.')}"
                ", so that `sampling: diverse` cannot tell examples apart. Set dtype: float32, or sampling: random."
            )
        result = torch.empty_like(found)
        result[torch.cat(positions)] = found
        return result

    def _pooled(self, body: nn.Module, wanted: frozenset[str] | None, batch: Batch) -> Tensor:
        inputs = {name: value for name, value in batch.inputs.items() if wanted is None or name in wanted}
        options: dict[str, Any] = {"use_cache": False} if wanted is None and self._family.kind in GENERATIVE else {}
        hidden = getattr(body(**inputs, **options), "last_hidden_state", None)
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            raise ModelError(
                f"The base ({type(body).__name__}) gives no hidden states [examples, positions, width], by which "
                "`sampling: diverse` tells examples apart. Set sampling: random."
            )
        hidden = to_device(hidden, self._spread.main)  # the body alone leaves them on its last device
        mask = inputs.get("attention_mask")
        if mask is None:
            return hidden.float().mean(1)
        weights = mask.float()[..., None]  # [B, T, 1]
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def base_embedder(
    config: SearchConfig, family: Family, spread: Spread, dtype: torch.dtype, progress: Progress | None
) -> BaseEmbedder | None:
    """The embedder of a search; None if it draws no examples by what they are."""
    if all(task.sampling.name == "random" for task in config.tasks.values()):
        return None
    return BaseEmbedder(
        family,
        {name: task.expert for name, task in config.tasks.items()},
        device=spread,
        dtype=dtype,
        batch_tokens=config.batch_tokens,
        progress=progress,
    )


def _reader_of(model: Any) -> tuple[nn.Module, frozenset[str] | None]:
    """The part of a model that reads inputs, and which of them it takes; None takes all."""
    if getattr(model.config, "is_encoder_decoder", False):
        return model.get_encoder(), frozenset({"input_ids", "attention_mask"})
    return model.base_model, None
