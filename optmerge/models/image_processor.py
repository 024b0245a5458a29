"""The image processor of a family's member: pictures in, the pixels that a model takes out.

Resizing and cropping are done once, and give bytes where the processor allows it; the rest (scaling, mean and standard
deviation) is done on the device, when a batch is there. 2,000 images of 224 x 224 pixels take 0.3 GB so.

    processor = image_processor_for(family, "base", dtype=torch.float32)
    pixels = processor.prepare(picture)              # uint8[C, H, W]
    processor.finish(pixels.to(device))              # float[C, H, W]

Processors are run on Pillow and NumPy, torchvision or not, so that the pixels do not depend on what is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from optmerge.errors import DataError, ModelError, did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

    from optmerge.models.family import Family

_FILES = ("preprocessor_config.json", "processor_config.json")
_PATCH = 16  # pixels, what counts as a patch in models that have none
_AGREE = 1e-4  # how near our scaling must come to the processor's own, in units of its output


class ImageProcessor:
    """Prepares images for one model.

    Args:
        processor: Of transformers, on Pillow.
        channels: 3 for colour, 1 for grey.
        patch: Height and width of a patch in pixels.
        dtype: Of what the model takes.
        where: Whose processor it is, for messages.
    """

    def __init__(self, processor: Any, *, channels: int, patch: int, dtype: torch.dtype, where: str) -> None:
        self._processor = processor
        self.mode = "L" if channels == 1 else "RGB"
        self._patch = patch
        self._dtype = dtype
        self._where = where
        self._scales: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._bytes: bool | None = None  # not known before an image was seen, as is the size
        self._size: tuple[int, ...] | None = None
        scaled, normalised = getattr(processor, "do_rescale", False), getattr(processor, "do_normalize", False)
        factor = float(getattr(processor, "rescale_factor", 1.0)) if scaled else 1.0
        mean, deviation = (processor.image_mean, processor.image_std) if normalised else (0.0, 1.0)
        centre, spread = (torch.tensor(values, dtype=torch.float64) for values in (mean, deviation))
        self._slope = (factor / spread).reshape(-1, 1, 1).float()
        self._shift = (centre / spread).reshape(-1, 1, 1).float()

    def prepare(self, image: Image) -> Tensor:
        """Resize and crop.

        Args:
            image: In the mode ``mode``.

        Returns:
            uint8[C, H, W], or float32 where the processor's scaling is another than `finish` knows.

        Raises:
            DataError: The processor refuses the image, or gave another one another size.
        """
        if self._bytes is None:
            self._bytes = self._agrees(image)
        row = self._run(image, whole=not self._bytes)
        self._size = self._size or row.shape
        if row.shape != self._size:
            sizes = " and ".join(f"{size[1]}x{size[2]}" for size in (self._size, row.shape))
            raise DataError(
                f"The image processor of {self._where} makes images of different sizes, such as {sizes} pixels, which "
                "cannot be put into one batch. Set size (and crop_size) in its preprocessor_config.json to one height "
                "and width."
            )
        return torch.from_numpy(row)

    def finish(self, pixels: Tensor) -> Tensor:
        """What the model takes: [..., C, H, W] of its dtype, on the device of ``pixels``."""
        if pixels.dtype == torch.uint8:
            if pixels.device not in self._scales:  # once, not for every batch
                self._scales[pixels.device] = self._slope.to(pixels.device), self._shift.to(pixels.device)
            slope, shift = self._scales[pixels.device]
            pixels = pixels.float().mul_(slope).sub_(shift)
        return pixels.to(self._dtype)

    def scaling(self) -> Tensor:
        """All that `finish` does to bytes, as numbers: to be hashed with them."""
        return torch.cat([self._slope.flatten(), self._shift.flatten()])

    def patches(self, pixels: Tensor) -> int:
        """How many patches each of some images is cut into."""
        height, width = pixels.shape[-2:]
        return -(-height // self._patch) * -(-width // self._patch)

    def _agrees(self, image: Image) -> bool:
        """Whether scaling bytes gives what the processor itself gives, by value."""
        kept, wanted = self._run(image, whole=False), self._run(image, whole=True)
        if kept.dtype != np.uint8 or kept.shape != wanted.shape:
            return False
        ours = torch.from_numpy(kept).float().mul(self._slope).sub(self._shift)
        return bool((ours - torch.from_numpy(wanted)).abs().max() <= _AGREE)

    def _run(self, image: Image, *, whole: bool) -> np.ndarray[Any, Any]:
        """[C, H, W], scaled or not."""
        options = {} if whole else {"do_rescale": False, "do_normalize": False}
        try:
            made = self._processor(images=[image], return_tensors="np", **options)["pixel_values"]
        except (ValueError, TypeError, KeyError) as problem:
            raise DataError(
                f"The image processor of {self._where} refuses an image of {image.width}x{image.height} pixels: "
                f"{' '.join(str(problem).split())[:300]}"
            ) from None
        row = np.asarray(made[0])
        return row if row.dtype == np.uint8 else row.astype(np.float32)


def image_processor_for(family: Family, who: str, *, dtype: torch.dtype) -> ImageProcessor:
    """The image processor in the folder of the base or of an expert.

    Args:
        family: Base and experts.
        who: ``"base"`` or an expert's name.
        dtype: Of the resident model.

    Raises:
        ModelError: ``who`` is neither, or has no image processor that transformers can load.
    """
    from transformers import AutoImageProcessor

    members = {"base": family.base, **family.experts}
    if who not in members:
        raise ModelError(
            f"There is no {who!r} to take an image processor from; there are {', '.join(members)}."
            f"{did_you_mean(who, members)}"
        )
    folder = members[who].folder
    others = [name for name, member in members.items() if any((member.folder / file).exists() for file in _FILES)]
    if who not in others:
        advice = f"Set tokenizer to one that has: {', '.join(others)}." if others else f"Copy {_FILES[0]} there."
        raise ModelError(f"{members[who].reference} has no image processor in {folder}. {advice}")
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as problem:
        first = " ".join(str(problem).split())[:300]
        raise ModelError(f"transformers cannot load the image processor in {folder}: {first}") from None
    config: Any = family.configs[next(iter(family.experts))]
    config = getattr(config, "vision_config", config)
    patch = getattr(config, "patch_size", None)
    return ImageProcessor(
        processor,
        channels=int(getattr(config, "num_channels", 3)),
        patch=patch if isinstance(patch, int) else _PATCH,
        dtype=dtype,
        where=members[who].reference,
    )
