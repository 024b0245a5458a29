"""What whole methods add to the base: computed parameter by parameter, kept in files by content, and mapped.

methods = MethodDeltas(family, directions, cache=cache_dir() / "directions")
methods.prepare(progress)
delta = methods.delta(direction, "encoder.layer.0.attention.self.query.weight")     # fp32, never written to
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optmerge.atomic import atomic_directory
from optmerge.config.methods import MethodConfig
from optmerge.errors import RecipeError, RunError
from optmerge.merging.methods import build_method
from optmerge.merging.methods.base import Method
from optmerge.merging.models_view import FamilyModels, Statistics
from optmerge.merging.recipe import Direction
from optmerge.models.mapped import SafetensorsFile
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.family import Family

PART = 1 << 28  # bytes of deltas that are gathered in memory before they go to a file


class MethodDeltas:
    """The deltas of the directions that are whole methods, or parts of one. See `Deltas` for the arguments."""

    def __init__(
        self, family: Family, directions: Sequence[Direction], *, cache: Path | None, statistics: Statistics | None
    ) -> None:
        self._family = family
        self._directions = [direction for direction in directions if direction.kind != "expert"]
        self._cache = cache
        self._statistics = statistics
        self._models = FamilyModels(family, statistics)
        self._keys: dict[str, str] = {}
        self._methods: dict[str, Method] = {}
        self._stored: dict[str, _Stored] = {}
        self._last: tuple[str, str, list[torch.Tensor]] | None = None

    @property
    def mapped(self) -> bool:
        """Whether every delta is a view of a file."""
        return all(self._key(direction) in self._stored for direction in self._directions)

    @property
    def statistics_wanted(self) -> bool:
        """Whether a method needs statistics and is in no cache yet."""
        return any(
            build_method(_config(direction), list(self._family.experts)).needs
            and direction.stored is None
            and not (self._cache and self._path(direction).is_dir())
            for direction in self._directions
        )

    def prepare(self, progress: Progress | None = None) -> None:
        """Compute what is in no cache, and open what is.

        Raises:
            RecipeError: A method needs calibration data, and neither they nor its stored delta are there.
        """
        for direction in self._directions:
            key = self._key(direction)
            if key in self._stored:
                continue
            if direction.stored is not None:
                self._stored[key] = _open_stored(direction, self._family)
            elif self._cache is not None:
                path = self._path(direction)
                if not path.is_dir():
                    self._compute(direction, path, progress)
                self._stored[key] = _Stored(path)

    def stored(self, direction: Direction) -> Path | None:
        """The folder that holds a direction's delta."""
        found = self._stored.get(self._key(direction))
        return found.folder if found else None

    def delta(self, direction: Direction, parameter: str) -> torch.Tensor:
        """fp32 (fp64 for an fp64 base), module layout; never write to it."""
        key = self._key(direction)
        if key not in self._stored and direction.stored is not None:
            self.prepare()
        if key in self._stored:
            return self._stored[key].read(self._entry(direction, parameter))
        if self._last is None or self._last[:2] != (key, parameter):
            self._last = None  # freed before the next one is made
            self._last = (key, parameter, self._tensors(direction, self._method(direction, None), parameter))
        return self._last[2][self._position(direction)]

    def _tensors(self, direction: Direction, method: Method, parameter: str) -> list[torch.Tensor]:
        if direction.kind == "method":
            return [method.delta(self._models, parameter)]
        return method.expert_deltas(self._models, parameter)

    def _entry(self, direction: Direction, parameter: str) -> str:
        return parameter if direction.kind == "method" else f"{self._position(direction)}/{parameter}"

    def _position(self, direction: Direction) -> int:
        return 0 if direction.kind == "method" else list(self._family.experts).index(direction.expert)

    def _method(self, direction: Direction, progress: Progress | None) -> Method:
        key = self._key(direction)
        if key not in self._methods:
            method = build_method(_config(direction), list(self._family.experts))
            if method.needs and self._statistics is None:
                raise RecipeError(
                    f"The direction {direction.name} depends on calibration data ({', '.join(sorted(method.needs))}), "
                    "and its stored delta is not there. Use the recipe in its run's folder, where the file lies."
                )
            method.prepare(self._models, progress)
            self._methods[key] = method
        return self._methods[key]

    def _compute(self, direction: Direction, path: Path, progress: Progress | None) -> None:
        """Write a method's deltas, `PART` bytes in memory at a time."""
        from safetensors.torch import save_file

        method = self._method(direction, progress)
        held: dict[str, torch.Tensor] = {}
        number = 0
        with atomic_directory(path) as folder:
            for done, parameter in enumerate(self._family.parameters):
                for position, tensor in enumerate(self._tensors(direction, method, parameter)):
                    held[parameter if direction.kind == "method" else f"{position}/{parameter}"] = tensor.contiguous()
                if sum(tensor.numel() * tensor.dtype.itemsize for tensor in held.values()) >= PART:
                    save_file(held, folder / f"part-{number:05d}.safetensors")
                    held, number = {}, number + 1
                if progress:
                    progress(_config(direction).name, done + 1, len(self._family.parameters))
            if held:
                save_file(held, folder / f"part-{number:05d}.safetensors")

    def _path(self, direction: Direction) -> Path:
        assert self._cache is not None
        return self._cache / self._key(direction)

    def _key(self, direction: Direction) -> str:
        """Names the content: the parts of one method have it in common."""
        if direction.name not in self._keys:
            method = build_method(_config(direction), list(self._family.experts))
            # The last bits of a decomposition depend on the library and on how many threads share the work.
            identity = [
                self._family.fingerprint(),
                direction.kind,
                _config(direction).model_dump(),
                direction.sha256,
                list(self._family.experts),
                self._family.heads,
                torch.__version__,
                torch.get_num_threads(),
                self._statistics.key if method.needs and self._statistics else None,
            ]
            self._keys[direction.name] = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        return self._keys[direction.name]


class _Stored:
    """The files of one method's deltas."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = [SafetensorsFile(path) for path in sorted(folder.glob("part-*.safetensors"))]
        self._file_of = {name: file for file in self.files for name in file.tensors}

    def read(self, name: str) -> torch.Tensor:
        """A view of the mapped file."""
        return self._file_of[name].read(name)

    def names(self) -> Iterator[str]:
        """All tensors."""
        return iter(self._file_of)


def stored_sha256(folder: Path) -> str:
    """A hash of the content of a stored direction."""
    from optmerge.models.cache import file_sha256

    hashes = [file_sha256(path) for path in sorted(folder.glob("part-*.safetensors"))]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _open_stored(direction: Direction, family: Family) -> _Stored:
    assert direction.stored is not None
    folder = Path(direction.stored)
    if not folder.is_dir():
        raise RecipeError(
            f"The recipe's direction {direction.name} was computed from calibration data and stored in {folder}, which "
            "is not there. Keep the recipe in its run's folder, or put that folder back."
        )
    if direction.sha256 is not None and stored_sha256(folder) != direction.sha256:
        raise RecipeError(
            f"The stored direction {direction.name} in {folder} is not the one that the recipe was made with: its "
            "content has another hash. Put the original back, or search again."
        )
    stored = _Stored(folder)
    lacking = [name for name in family.parameters if name not in set(stored.names())]
    if lacking:
        raise RunError(f"The stored direction {direction.name} in {folder} lacks {lacking[0]}; search again.")
    return stored


def _config(direction: Direction) -> MethodConfig:
    assert direction.config is not None
    return direction.config
