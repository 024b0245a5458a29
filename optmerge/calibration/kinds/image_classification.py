"""Images for image classifiers.

reader = ImageClassificationReader(Task("pets", TaskConfig(expert="pets", data="pets"), config, images=processor))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch, Examples
from optmerge.calibration.images import Picture
from optmerge.calibration.labels import HeadLabels
from optmerge.calibration.pixel_keys import PixelKeys
from optmerge.calibration.reader import Reader, Task
from optmerge.models.architecture import Kind
from optmerge.models.image_processor import ImageProcessor


class ImageReader(Reader[Picture, Tensor]):
    """Reads the column ``image``, and labels by what a head knows.

    Args:
        task: With an image processor.
        labels: What the labels of the data mean.
    """

    truth_from: ClassVar[Literal["label", "inputs"]] = "label"
    settings: ClassVar[str] = "`image`"
    holding: ClassVar[str] = "image"
    unusable: ClassVar[str] = "have no pixel"

    def __init__(self, task: Task, labels: HeadLabels) -> None:
        spec = task.spec
        super().__init__(task, [spec.image], f"image in column {spec.image!r}", classes=labels.classes)
        self._labels = labels
        self._images = task.images
        data = task.folder / Path(spec.data).expanduser()
        self._folder = data if data.is_dir() else data.parent
        self._keys = PixelKeys(str(data), self._images.mode)

    def raw(self, values: Mapping[str, Any], where: str) -> Picture | None:
        """See `Reader.raw`."""
        return Picture.of(values[self.columns[0]], self._folder, where)

    def key(self, raw: Picture) -> str:
        """See `Reader.key`."""
        return self._keys.of(raw)

    def encode(self, raws: Sequence[Picture]) -> list[list[Tensor]]:
        """See `Reader.encode`."""
        self._keys.save()  # by now every image has one
        return [[self._images.prepare(raw.open(self._images.mode))] for raw in raws]

    def label(self, value: Any, encoded: Tensor, names: Sequence[str], where: str) -> list[int]:
        """See `Reader.label`."""
        return [self._labels.index(value, names, where)]

    def examples(self, encoded: Sequence[Tensor], labels: Sequence[list[int]] | None, *, labelled: bool) -> Examples:
        """See `Reader.examples`."""
        classes = None if labels is None else torch.tensor([label for (label,) in labels], dtype=torch.int64)
        return ClassifiedImages(torch.stack(list(encoded)), classes, self._images)


class ImageClassificationReader(ImageReader):
    """Images for experts with heads of their own."""

    kind: ClassVar[Kind] = "image-classification"

    def __init__(self, task: Task) -> None:
        super().__init__(task, HeadLabels(task))


@dataclass(frozen=True, eq=False)
class ImageBatch(Batch):
    """Images as bytes, which become what the model takes on its device.

    Attributes:
        finish: See `ImageProcessor.finish`.
    """

    finish: Callable[[Tensor], Tensor] = field(kw_only=True)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``, ready for the model."""
        moved = super().to(device)
        pixels = self.finish(moved.inputs["pixel_values"])
        return Batch({"pixel_values": pixels}, self.positions, targets=moved.targets, tokens=self.tokens)


class ClassifiedImages(Examples):
    """Images of one size, with a class each or without.

    Args:
        pixels: [n, C, H, W], as `ImageProcessor.prepare` gives them.
        classes: int64[n], or None.
        processor: Finishes them.
    """

    def __init__(self, pixels: Tensor, classes: Tensor | None, processor: ImageProcessor) -> None:
        self.lengths = torch.full((len(pixels), 1), processor.patches(pixels), dtype=torch.int64)
        self._pixels = pixels
        self._classes = classes
        self._processor = processor

    def collate(self, positions: Tensor) -> Batch:
        """See `Examples.collate`. Neighbours are not copied."""
        first, count = int(positions[0]), len(positions)
        neighbours = torch.equal(positions, torch.arange(first, first + count))
        pixels = self._pixels[first : first + count] if neighbours else self._pixels[positions]
        classes = None if self._classes is None else self._classes[positions]
        return ImageBatch({"pixel_values": pixels}, positions, targets=classes, finish=self._processor.finish)

    def inputs(self) -> Iterable[Tensor]:
        """See `Examples.inputs`."""
        yield torch.tensor(self._pixels.shape)
        yield self._pixels
        yield self._processor.scaling()  # processors that cut images alike may scale them otherwise

    def truth(self) -> Tensor | None:
        """See `Examples.truth`."""
        return self._classes
