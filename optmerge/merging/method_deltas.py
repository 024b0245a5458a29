"""What whole methods add to the base: computed parameter by parameter, kept in files by content, and mapped.

methods = MethodDeltas(family, directions, cache=cache_dir() / "directions")
methods.prepare(progress)
delta = methods.delta(direction, "encoder.layer.0.attention.self.query.weight")     # fp32, never written to
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optmerge.config.methods import Need
from optmerge.config.methods.own import content_of
from optmerge.config.spectral import DirectionConfig
from optmerge.errors import RecipeError
from optmerge.merging.methods import build_method
from optmerge.merging.methods.bands import Bands
from optmerge.merging.methods.base import Method
from optmerge.merging.models_view import FamilyModels, Statistics
from optmerge.merging.parts import Parts, link_parts, write_parts
from optmerge.merging.recipe import Direction
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.family import Family


class MethodDeltas:
    """The deltas of the directions that are whole methods, or parts of one. See `Deltas` for the arguments."""

    def __init__(
        self,
        family: Family,
        directions: Sequence[Direction],
        *,
        cache: Path | None,
        statistics: Statistics | None,
        made: Mapping[str, Path],
    ) -> None:
        self._family = family
        self._directions = [direction for direction in directions if direction.kind != "expert"]
        self._cache = cache
        self._ready = made
        self._statistics = statistics
        self._models = FamilyModels(family, statistics)
        self._keys: dict[str, str] = {}
        self._blank: dict[str, Method] = {}  # by direction, not prepared
        self._methods: dict[str, Method] = {}  # by key, prepared
        self._stored: dict[str, Parts] = {}
        self._last: tuple[str, str, list[torch.Tensor]] | None = None

    @property
    def mapped(self) -> bool:
        """Whether every delta is a view of a file."""
        return all(self.key(direction) in self._stored for direction in self._directions)

    @property
    def folders(self) -> dict[str, Path]:
        """Direction -> the folder that its delta is mapped from; `prepare` comes first."""
        keys = {direction.name: self.key(direction) for direction in self._directions}
        return {name: self._stored[key].folder for name, key in keys.items() if key in self._stored}

    @property
    def statistics_wanted(self) -> frozenset[Need]:
        """The statistics that methods need which are in no cache yet."""
        missing = [
            direction
            for direction in self._directions
            if direction.stored is None
            and direction.name not in self._ready
            and not (self._cache and self._path(direction).is_dir())
        ]
        return frozenset[Need]().union(*(self._built(direction).needs for direction in missing))

    def prepare(self, progress: Progress | None = None) -> None:
        """Compute what is in no cache, and open what is.

        Raises:
            RecipeError: A method needs calibration data, and neither they nor its stored delta are there.
        """
        for direction in self._directions:
            key = self.key(direction)
            if key in self._stored:
                continue
            if direction.stored is not None:
                self._stored[key] = self._open_stored(direction)
            elif direction.name in self._ready:
                self._stored[key] = Parts(self._ready[direction.name])
            elif self._cache is not None:
                path = self._path(direction)
                if not path.is_dir():
                    write_parts(path, self._computed(direction, progress))
                self._stored[key] = Parts(path)

    def key(self, direction: Direction) -> str:
        """A hash of all that the content depends on; the parts of one method have it in common."""
        if direction.name not in self._keys:
            method = self._built(direction)
            # The last bits of a decomposition depend on the library and on how many threads share the work.
            identity = [
                self._family.fingerprint(),
                direction.kind,
                content_of(_config(direction)),
                direction.sha256,
                list(self._family.experts),
                self._family.heads,
                version("optmerge"),
                torch.__version__,
                torch.get_num_threads(),
                self._statistics.key(method.needs) if method.needs and self._statistics else None,
            ]
            self._keys[direction.name] = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        return self._keys[direction.name]

    def kept_in(self, direction: Direction, folder: Path) -> Direction:
        """The direction as one that is stored in ``folder``, if it depends on calibration data; else as it is."""
        if not self._built(direction).needs:
            return direction
        if not folder.is_dir():
            link_parts(self._stored[self.key(direction)].folder, folder)
        return replace(direction, stored=str(folder.absolute()), sha256=Parts(folder).sha256())

    def delta(self, direction: Direction, parameter: str) -> torch.Tensor | None:
        """fp32 (fp64 for an fp64 base), module layout, never to be written to; None where there is none (`absent`)."""
        if self.absent(direction, parameter):
            return None
        key = self.key(direction)
        if key not in self._stored and direction.stored is not None:
            self.prepare()
        if key in self._stored:
            return self._stored[key].read(_entry(direction, self._position(direction, parameter), parameter))
        if self._last is None or self._last[:2] != (key, parameter):
            self._last = None  # freed before the next one is made
            method = self._method(direction, None)
            self._last = (key, parameter, self._tensors(direction, method, self._models, parameter))
        return self._last[2][self._position(direction, parameter)]

    def absent(self, direction: Direction, parameter: str) -> bool:
        """Whether the direction is a band that an undivided parameter has not."""
        if direction.band < 2:
            return False
        method = self._built(direction)
        assert isinstance(method, Bands), f"{direction.name} has a band"
        return not method.divides(self._models.kind(parameter))

    def _tensors(
        self, direction: Direction, method: Method, models: FamilyModels, parameter: str
    ) -> list[torch.Tensor]:
        """All that have the direction's settings, as `_position` numbers them."""
        if isinstance(method, Bands):
            return method.band_deltas(models, parameter)
        if direction.kind == "method":
            return [method.delta(models, parameter)]
        return method.expert_deltas(models, parameter)

    def _position(self, direction: Direction, parameter: str) -> int:
        """Where the direction's delta of a parameter stands among those of its settings."""
        expert = list(self._family.experts).index(direction.expert) if direction.expert else 0
        if not direction.band:
            return expert
        method = self._built(direction)
        assert isinstance(method, Bands), f"{direction.name} has a band"
        return expert * method.count(self._models.kind(parameter)) + direction.band - 1

    def keeps_base(self, direction: Direction) -> bool:
        """Whether the delta is zero wherever every expert's is (`Method.keeps_base`)."""
        return self._built(direction).keeps_base

    def _built(self, direction: Direction) -> Method:
        """A method with the direction's settings, not prepared."""
        if direction.name not in self._blank:
            self._blank[direction.name] = build_method(_config(direction), list(self._family.experts))
        return self._blank[direction.name]

    def _method(self, direction: Direction, progress: Progress | None) -> Method:
        key = self.key(direction)
        if key not in self._methods:
            method = build_method(_config(direction), list(self._family.experts))
            if method.needs and self._statistics is None:
                raise RecipeError(
                    f"The direction {direction.name} depends on calibration data ({', '.join(sorted(method.needs))}), "
                    "and its stored delta is not there. A search with it among the directions makes one and keeps it "
                    "in its run's folder; use the recipe there."
                )
            method.prepare(self._models, progress)
            self._methods[key] = method
        return self._methods[key]

    def _computed(self, direction: Direction, progress: Progress | None) -> Iterator[dict[str, torch.Tensor]]:
        """A method's deltas, parameter by parameter."""
        method = self._method(direction, progress)
        made: Iterator[dict[str, torch.Tensor]]
        if "merged-grams" in method.needs:
            made = self._made_layer_by_layer(direction, method)
        else:
            made = (self._made(direction, method, self._models, name) for name in self._family.parameters)
        for done in range(len(self._family.parameters)):
            yield next(made)  # no name is left for it, so that it is gone while the next one is made
            if progress:
                progress(_config(direction).name, done + 1, len(self._family.parameters))

    def _made_layer_by_layer(self, direction: Direction, method: Method) -> Iterator[dict[str, torch.Tensor]]:
        """The same of a method whose statistics depend on the merge so far, a layer at a time."""
        assert self._statistics is not None, "a method that needs statistics was prepared without them"
        merge = self._statistics.layer_by_layer()
        models = FamilyModels(self._family, merge)
        for parameter in itertools.chain.from_iterable(merge.stages()):
            made = self._made(direction, method, models, parameter)
            merge.settle(parameter, made[parameter])
            yield made
            del made  # before the next one is made

    def _made(
        self, direction: Direction, method: Method, models: FamilyModels, parameter: str
    ) -> dict[str, torch.Tensor]:
        return {
            _entry(direction, position, parameter): tensor.contiguous()
            for position, tensor in enumerate(self._tensors(direction, method, models, parameter))
        }

    def _open_stored(self, direction: Direction) -> Parts:
        assert direction.stored is not None
        folder = Path(direction.stored)
        if not folder.is_dir():
            raise RecipeError(
                f"The recipe's direction {direction.name} was computed from calibration data and stored in {folder}, "
                "which is not there. Keep the recipe in its run's folder, or put that folder back."
            )
        stored = Parts(folder)
        if direction.sha256 is not None and stored.sha256() != direction.sha256:
            raise RecipeError(
                f"The stored direction {direction.name} in {folder} is not the one that the recipe was made with: its "
                "content has another hash. Put the original back, or search again."
            )
        for name in self._family.parameters:
            if _entry(direction, self._position(direction, name), name) not in stored:
                raise RecipeError(
                    f"The stored direction {direction.name} in {folder} has no tensor for {name}. Put the original "
                    "back, or search again."
                )
        return stored

    def _path(self, direction: Direction) -> Path:
        assert self._cache is not None
        return self._cache / self.key(direction)


def _entry(direction: Direction, position: int, parameter: str) -> str:
    """What a parameter's delta is called in a file; the parts of all experts stand in the same files."""
    return parameter if direction.kind == "method" else f"{position}/{parameter}"


def _config(direction: Direction) -> DirectionConfig:
    assert direction.config is not None
    return direction.config
