"""What a term of the whole model is: one number per evaluation, made without the calibration data.

    class Turns(WholeModelTerm):
        name = "turns"
        ...
        def measure(self, model, split):
            return play_a_game(model, self._games[split])

A search opens such a term once, measures it at every evaluation, and records the raw value in the evaluation's
``parts``. It has no gradient, and it keeps the law of the three splits itself: what it looks at on ``fit``, ``select``
and ``report`` must have nothing in common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from optmerge.config.base import Strict
from optmerge.records import SplitName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from optmerge.models.image_processor import ImageProcessor


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What a term of the whole model is told of the search, once.

    Attributes:
        kind: What the models are: "causal-lm", "sequence-classification", ...
        reads: The merged model's tokenizer, or the image processor of a model that sees images.
        base: Folder of the base model, where a generation_config.json may be.
    """

    kind: str
    reads: PreTrainedTokenizerBase | ImageProcessor
    base: Path


class WholeModelTerm(ABC):
    """Judges the merged model as a whole; raw, in its own unit, not normalised.

    Attributes:
        name: What search files, trajectories and tables call it.
        higher_is_better: Whether a good model has a high value. It may become known in `open` only.
        unit: Of its values.
        paper: Where it is from.
        config: Its settings.
    """

    name: ClassVar[str]
    higher_is_better: bool
    unit: ClassVar[str]
    paper: ClassVar[str]

    def __init__(self, config: Strict | None = None) -> None:
        self.config = config

    def open(self, around: Surroundings) -> None:
        """Make ready for `measure`; called once.

        Raises:
            UserError: The term cannot judge such models, or what it needs is missing.
        """
        return

    def identity(self) -> Mapping[str, str]:
        """What its values depend on beside the model and the settings: name -> hash. A resume compares them.

        Called after `open`.
        """
        return {}

    @abstractmethod
    def measure(self, model: nn.Module, split: SplitName) -> float:
        """The value of a model on a split.

        Args:
            model: The merged model in evaluation mode; it must be left as it is.
            split: Whose part of the term's own data to look at.
        """
