"""One reader per kind of model."""

from collections.abc import Callable
from typing import Any

from optmerge.calibration.kinds.causal_lm import causal_lm_reader
from optmerge.calibration.kinds.image_classification import ImageClassificationReader
from optmerge.calibration.kinds.seq2seq_lm import Seq2SeqReader
from optmerge.calibration.kinds.sequence_classification import SequenceClassificationReader
from optmerge.calibration.kinds.token_classification import TokenClassificationReader
from optmerge.calibration.kinds.zero_shot import ZeroShotReader
from optmerge.calibration.reader import Reader, Task
from optmerge.models.architecture import Kind

READERS: dict[Kind, Callable[[Task], Reader[Any, Any]]] = {
    "causal-lm": causal_lm_reader,
    "seq2seq-lm": Seq2SeqReader,
    "sequence-classification": SequenceClassificationReader,
    "token-classification": TokenClassificationReader,
    "image-classification": ImageClassificationReader,
    "zero-shot-image-classification": ZeroShotReader,
}

__all__ = ["READERS"]
