"""Images of calibration data, wherever they stand: files, bytes in a column, arrays; and folders with one per class.

    picture = Picture.of("cats/1.png", folder, "tasks.pets: pets.jsonl, row 3")
    picture.open("RGB")                       # a Pillow image
    picture.key("RGB")                        # the hash of its pixels, wherever it was found
    rows = read_image_folder(Path("pets"))    # columns image and label: a sub-folder per class

Pictures are decoded when they are looked at, so that a large data set does not fill memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optmerge.calibration.splits import content_key
from optmerge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_DEEP = ("I", "F")  # how Pillow's modes begin whose values do not fit into a byte


@dataclass(frozen=True, eq=False)
class Picture:
    """One image that was not decoded yet.

    Attributes:
        source: A file, a file's bytes, or an array uint8[H, W] or [H, W, 3].
        where: The row that it stands in, for messages.
    """

    source: Path | bytes | np.ndarray[Any, np.dtype[np.uint8]]
    where: str

    @classmethod
    def of(cls, value: object, folder: Path, where: str) -> Picture | None:
        """The image in a cell: a path, bytes, a mapping with either (as ``datasets`` writes them), or nested lists.

        Args:
            value: The cell.
            folder: What relative paths are relative to.
            where: The row, for messages.

        Returns:
            None for an empty cell.

        Raises:
            DataError: The cell holds something else.
        """
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
            value = value.get("bytes") or value.get("path")
        if value is None or value in ("", b""):
            return None
        if isinstance(value, str):
            return cls(folder / Path(value).expanduser(), where)
        if isinstance(value, bytes):
            return cls(value, where)
        if isinstance(value, list):
            return cls(_as_pixels(value, where), where)
        raise DataError(
            f"{where}: the image is a {type(value).__name__}; expected a path, the bytes of an image file, or rows of "
            "pixels from 0 to 255."
        )

    def open(self, mode: str) -> Image:
        """The decoded image, upright.

        Args:
            mode: Pillow's name for how a pixel is kept: ``RGB``, or ``L`` for grey.

        Raises:
            DataError: There is no such file, it is no image, or its pixels do not fit into bytes.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        if isinstance(self.source, np.ndarray):
            return Image.fromarray(self.source).convert(mode)
        try:
            with Image.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source) as image:
                if image.mode.startswith(_DEEP):
                    raise DataError(
                        f"{self.where}: the image ({self._name}) has pixels of the mode {image.mode}, which would be "
                        "cut off at 255. Save it with 8 bits for each colour."
                    )
                return ImageOps.exif_transpose(image).convert(mode)
        except FileNotFoundError:
            raise DataError(
                f"{self.where}: there is no image {self.source!s}. Paths are relative to the file that names them."
            ) from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
            what = " ".join(str(problem).split())[:200]
            raise DataError(
                f"{self.where}: the image ({self._name}) cannot be decoded: {what}. Mend it, or leave it out."
            ) from None

    @property
    def _name(self) -> str:
        return f"{len(self.source)} bytes" if isinstance(self.source, bytes) else str(self.source)

    def key(self, mode: str) -> str:
        """The hash of the pixels: equal for equal images, whatever file or format they stand in."""
        image = self.open(mode)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        return content_key(mode, f"{image.width}x{image.height}", digest)


def is_image_folder(path: Path) -> bool:
    """Whether a folder holds images, itself or in a sub-folder."""
    return path.is_dir() and any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))


def image_files(path: Path) -> list[tuple[Path, str]]:
    """Every image below a folder and the name of the folder that it lies in, its class; in the order of their paths."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return [(file, file.parent.name if file.parent != path else "") for file in files]


def class_folders(path: Path) -> list[str]:
    """The names of the sub-folders that hold images: the classes, in the order of their names."""
    return sorted({name for _, name in image_files(path) if name})


def _as_pixels(value: list[Any], where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        pixels = np.array(value)
    except ValueError:
        raise DataError(f"{where}: the rows of the image are of different lengths.") from None
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not shaped or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise DataError(
            f"{where}: the image is an array of shape {list(pixels.shape)} and type {pixels.dtype}; expected whole "
            "numbers from 0 to 255 in the shape [height, width] or [height, width, 3]."
        )
    return pixels.astype(np.uint8)
