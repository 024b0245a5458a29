"""Token ids of one split, and the padded inputs made of them.

tokens = Tokens(encoded, tokenizer)
tokens.collate(torch.tensor([4, 1]))     # {"input_ids": int64[2, T], "attention_mask": int64[2, T]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optmerge.calibration.encode import EncodedText
from optmerge.calibration.ragged import Ragged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokens:
    """Token ids of n texts, with their segments where the tokenizer has some.

    Args:
        encoded: The texts.
        tokenizer: Says what fills the end of shorter ones; attention masks hide it.

    Attributes:
        lengths: int64[n].
        ids: The token ids.
        filling: The token that fills.
    """

    def __init__(self, encoded: Sequence[EncodedText], tokenizer: PreTrainedTokenizerBase) -> None:
        self.ids = Ragged([text.ids for text in encoded], torch.int32)
        self.lengths = self.ids.lengths
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        self.filling = next((int(token) for token in known if token is not None), 0)
        self._segment = int(getattr(tokenizer, "pad_token_type_id", 0) or 0)
        segmented = bool(encoded) and encoded[0].types is not None
        self._types = Ragged([text.types or [] for text in encoded], torch.int32) if segmented else None

    def collate(self, positions: Tensor) -> dict[str, Tensor]:
        """Padded inputs of the texts at ``positions``, int64[B, T] each."""
        inputs = {
            "input_ids": self.ids.padded(positions, self.filling),
            "attention_mask": self.ids.present(positions).long(),
        }
        if self._types is not None:
            inputs["token_type_ids"] = self._types.padded(positions, self._segment)
        return inputs

    def tensors(self) -> Iterable[Tensor]:
        """All that it holds, for a hash."""
        yield self.lengths
        yield self.ids.values
        if self._types is not None:
            yield self._types.values
