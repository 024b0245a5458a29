"""The keys of images that were decoded before, so that a data set is not decoded each time it is opened.

    keys = PixelKeys("/data/pets", "RGB")
    keys.of(picture)          # the picture's key, decoded or recalled
    keys.save()

A file is known by its path, size, modification time and inode, bytes by their hash.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from optmerge.calibration.images import Picture
from optmerge.models.cache import recall, remember

_SETTLED = 2.0  # seconds; a file changed more recently could change again without its time stamp showing it


class PixelKeys:
    """Keys of the images of one data set.

    Args:
        source: The data set's path or id.
        mode: In which images are decoded; see `Picture.open`.
    """

    def __init__(self, source: str, mode: str) -> None:
        self._mode = mode
        self._name = hashlib.sha256(f"{mode} {source}".encode()).hexdigest()[:32]
        self._known = recall("pixels", self._name) or {}
        self._new = False

    def of(self, picture: Picture) -> str:
        """The key of an image.

        Raises:
            DataError: It cannot be decoded.
        """
        identity = _identity(picture.source)
        if identity is None:
            return picture.key(self._mode)
        if identity not in self._known:
            self._known[identity] = picture.key(self._mode)
            self._new = True
        return str(self._known[identity])

    def save(self) -> None:
        """Keep what is known for the next time."""
        if self._new:
            remember("pixels", self._name, self._known)
            self._new = False


def _identity(source: object) -> str | None:
    """What says that an image is the one that was seen before; None where nothing does."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if not isinstance(source, Path):
        return None  # arrays are there already
    try:
        stat = source.stat()
    except OSError:
        return None  # decoding it will say what is wrong
    if time.time() - stat.st_mtime < _SETTLED:
        return None
    return f"{source} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
