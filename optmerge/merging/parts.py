"""Folders of tensors that were computed once: written part by part, whole or absent, and mapped when they are read.

write_parts(folder, ({name: delta(name)} for name in names))     # nothing to do where another process was faster
stored = Parts(folder)
stored.read("encoder.layer.0.attention.self.query.weight")       # a view of the file; never write to it
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from optmerge.atomic import atomic_directory
from optmerge.errors import RunError
from optmerge.models.cache import file_sha256
from optmerge.models.mapped import SafetensorsFile

log = logging.getLogger(__name__)

PART = 1 << 28  # bytes of tensors that are gathered in memory before they go to a file


class Parts:
    """The tensors of a folder that `write_parts` filled.

    Raises:
        ModelError: A file is truncated or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of = {name: file for file in map(SafetensorsFile, _files(folder)) for name in file.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str) -> torch.Tensor:
        """A view of the mapped file."""
        return self._file_of[name].read(name)

    def sha256(self) -> str:
        """A hash of the content."""
        hashes = [file_sha256(path) for path in _files(self.folder)]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def write_parts(folder: Path, tensors: Iterable[dict[str, torch.Tensor]]) -> None:
    """Write tensors as they come, about `PART` bytes to a file.

    Where another process has filled the folder meanwhile, that one stays: what is computed twice is the same.

    Args:
        folder: Appears when all of it is written, and not before.
        tensors: By name, contiguous and on the CPU. At most `PART` bytes and one of these are held at a time.

    Raises:
        RunError: The disk refuses.
    """
    from safetensors.torch import save_file

    try:
        with atomic_directory(folder) as temporary:
            held: dict[str, torch.Tensor] = {}
            number = 0
            for some in tensors:
                held |= some
                del some  # what is written is let go before the next ones are made
                if sum(tensor.nbytes for tensor in held.values()) >= PART:
                    save_file(held, _part(temporary, number))
                    held, number = {}, number + 1
            if held or number == 0:
                save_file(held, _part(temporary, number))
    except (RunError, OSError):
        if not folder.is_dir():
            raise
        log.info("%s was written by another process meanwhile, and is used", folder)


def link_parts(source: Path, target: Path) -> None:
    """Give a folder of parts a second place, without a second copy where the disk has hard links."""
    with atomic_directory(target) as temporary:
        for path in _files(source):
            try:
                (temporary / path.name).hardlink_to(path)
            except OSError:  # another disk, or a file system without links
                shutil.copyfile(path, temporary / path.name)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.safetensors"))
