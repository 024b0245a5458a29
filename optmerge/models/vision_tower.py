"""CLIP's vision tower: what of a CLIP checkpoint is merged when class names make the heads.

A family with zero-shot heads may mix whole CLIP models and vision towers saved alone, as published experts are: each
is looked at as one `CLIPVisionModelWithProjection`, whose body is the tower. The text tower is not part of the merge.

    model = vision_tower(config)        # of a CLIPModel, a CLIPVisionModel or a CLIPVisionModelWithProjection
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from optmerge.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.mapping import CheckpointMap

PROJECTION = "visual_projection.weight"  # [P, H]: takes the tower's pooled output into the space of text and images
_TYPES = ("clip", "clip_vision_model")
_ELSEWHERE = {r"^text_model\.", r"^text_projection\.", r"^logit_scale$"}  # of a whole model, beside its vision tower


def is_clip(config: PreTrainedConfig) -> bool:
    """Whether a model's vision tower can be looked at as `vision_tower` does."""
    return config.model_type in _TYPES


def vision_tower(config: PreTrainedConfig, *, dtype: torch.dtype) -> nn.Module:
    """The tower and its projection, on the device that torch makes tensors on.

    Args:
        config: Of a whole CLIP model or of a vision tower.
        dtype: Of the parameters.
    """
    from transformers import CLIPVisionModelWithProjection

    tower = config
    if config.model_type == "clip":
        tower = config.vision_config
        tower.projection_dim = config.projection_dim
    model: nn.Module = CLIPVisionModelWithProjection._from_config(tower, dtype=dtype)
    model._keys_to_ignore_on_load_unexpected = _ELSEWHERE  # type: ignore[assignment]
    return model


def check_clip(checkpoints: Mapping[str, Checkpoint], configs: Mapping[str, PreTrainedConfig]) -> None:
    """Every member of a family with zero-shot heads must be a CLIP model.

    Raises:
        ModelError: One is not.
    """
    for who, config in configs.items():
        if not is_clip(config):
            raise ModelError(
                f"heads is 'zero-shot', which takes CLIP models ({' or '.join(_TYPES)}), and "
                f"{checkpoints[who].reference} is a {config.model_type} model. Use heads: auto, "
                "where every task keeps its expert's own head."
            )


def require_projection(layout: CheckpointMap, reference: str) -> None:
    """The base must know how image features meet text.

    Raises:
        ModelError: It has no projection.
    """
    if PROJECTION in layout.missing:
        raise ModelError(
            f"The base {reference} has no {PROJECTION}, so that its features cannot be compared with the embeddings of "
            "class names. Name the whole CLIP model (a CLIPModel checkpoint) as the base; experts may be vision towers "
            "alone."
        )
