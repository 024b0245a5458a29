"""What a model said about a batch: the one thing that terms and teachers look at.

outputs = Outputs(logits)
outputs = Outputs(logits, {11: hidden})     # with the output of the twelfth layer, where a term asked for it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Outputs:
    """A model's answer to a batch; any floating dtype, on the batch's device.

    Attributes:
        logits: [B, C] of a classifier; [B, T, V] of a language model (the decoder's positions, where it has an encoder
            too); [B, T, C] of a token classifier.
        hidden: Index of a transformer layer -> what it gave, [B, T, H]. Only layers that were asked for.
        decoder: Which of these layers belong to the decoder of a model that has an encoder too.
    """

    logits: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    decoder: frozenset[int] = frozenset()
