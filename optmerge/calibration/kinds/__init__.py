"""One reader per kind of model."""

from collections.abc import Callable
from typing import Any

from optmerge.calibration.kinds.causal_lm import CausalLMReader
from optmerge.calibration.kinds.sequence_classification import SequenceClassificationReader
from optmerge.calibration.reader import Kind, Reader, Task

READERS: dict[Kind, Callable[[Task], Reader[Any, Any]]] = {
    "causal-lm": CausalLMReader,
    "sequence-classification": SequenceClassificationReader,
}

__all__ = ["READERS"]
