"""The zero-shot heads of a search's tasks.

heads = zero_shot_heads(config, family, device)         # {} unless heads is zero-shot
heads["pets"]                                           # fp32[P, C]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optmerge.calibration.kinds.zero_shot import class_names
from optmerge.config.schema import SearchConfig
from optmerge.errors import ModelError
from optmerge.models.checkpoint import open_checkpoint
from optmerge.models.vision_tower import PROJECTION
from optmerge.models.zero_shot import TextTower, prompts_for

if TYPE_CHECKING:
    from optmerge.calibration.data import Calibration
    from optmerge.models.family import Family


def zero_shot_heads(config: SearchConfig, family: Family, device: torch.device) -> dict[str, Tensor]:
    """Task -> its head fp32[P, C] on the device; none where heads are not zero-shot.

    Args:
        config: With absolute references.
        family: Base and experts.
        device: Where the heads are made, and wanted.

    Raises:
        ModelError: There is no text tower, or another model's.
        ConfigError: A task's classes are not known.
    """
    if family.heads != "zero-shot":
        return {}
    text = family.base
    if config.text_model != "base":
        text = open_checkpoint(config.text_model, relative_to=Path(), allow_pickle=config.allow_pickle)
    tower = TextTower.of(text, device)
    heads = {}
    for task, spec in config.tasks.items():
        names = class_names(task, spec, Path())
        heads[task] = tower.head(prompts_for(list(names.values()), spec.templates))
        if len(heads[task]) != _width(family):
            raise ModelError(
                f"The text tower of {text.reference} embeds the names of classes in {len(heads[task])} dimensions, and "
                f"the base's images are in {_width(family)}. Set text_model to the CLIP model that the base comes from."
            )
    return heads


def blank_heads(family: Family, calibration: Calibration, device: torch.device) -> dict[str, Tensor]:
    """Heads of the right shapes and no values, to measure memory with."""
    if family.heads != "zero-shot":
        return {}
    return {
        task: torch.empty(_width(family), data.num_labels or 0, device=device)
        for task, data in calibration.tasks.items()
    }


def _width(family: Family) -> int:
    return family.maps["base"].shapes[PROJECTION][0]
