"""Output layers of their own, in models whose class ties them to the input embedding whatever a config says.

if has_own_output(checkpoint):
    untie(model, [OUTPUT])

transformers ties T5's output layer always when it builds one, and on loading takes the tie back where both tensors are
there and differ, as in T5 1.1, FLAN-T5 and mT5. Values decide, so it cannot be seen in configs and headers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint

OUTPUT = "lm_head.weight"
_EMBEDDING = "shared.weight"  # what the T5 family calls its input embedding on disk


def has_own_output(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint of the T5 family has an output layer other than its input embedding."""
    if OUTPUT not in checkpoint.tensors or _EMBEDDING not in checkpoint.tensors:
        return False
    output, embedding = checkpoint.read(OUTPUT), checkpoint.read(_EMBEDDING)
    if output.shape != embedding.shape:
        return True
    return not torch.equal(output[:1], embedding[:1]) or not torch.equal(output, embedding)


def untie(model: nn.Module, names: Iterable[str]) -> None:
    """Give those of the named parameters that are tied to another one a tensor of their own.

    Args:
        model: Still on the meta device.
        names: Parameters that should be there; those that are not tied stay as they are.
    """
    known = dict(model.named_parameters())
    for name in names:
        if name not in known:
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            tied = module.get_parameter(attribute)
            module.register_parameter(attribute, nn.Parameter(torch.empty_like(tied), tied.requires_grad))
