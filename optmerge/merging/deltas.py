"""Directions as tensors: for every parameter, the segments with the deltas that coefficients multiply.

An expert's task vector is never made: it is read as (expert, base) and subtracted chunk by chunk, or kept as the two
factors of a LoRA adapter. What whole methods give is computed parameter by parameter, and with a cache kept in files by
content hash and mapped.

    deltas = Deltas(family, directions, cache=cache_dir() / "directions")
    deltas.prepare(progress)
    segments = deltas.segments("encoder.layer.0.attention.self.query.weight")
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote

import torch

from optmerge.config.methods import Need
from optmerge.merging.magnitudes import task_vector_magnitudes
from optmerge.merging.method_deltas import MethodDeltas
from optmerge.merging.models_view import Statistics
from optmerge.merging.recipe import Direction, Recipe
from optmerge.merging.sources import AnySource, LowRank, Segment, Source, placed
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.family import Family


LONGEST = 100  # characters of a folder's name; file systems take 255 bytes, and temporary names are longer


class Deltas:
    """The deltas of a family along some directions.

    Args:
        family: Base and experts.
        directions: What gets coefficients.
        cache: Folder where whole methods' deltas are kept; None computes each parameter's when it is asked for and
            keeps only the last, for a merge that asks once.
        statistics: What methods that need calibration data are given.
        made: Direction -> folder with its delta, where another process has made it.
    """

    def __init__(
        self,
        family: Family,
        directions: Sequence[Direction],
        *,
        cache: Path | None,
        statistics: Statistics | None = None,
        made: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        self.family = family
        self.directions = tuple(directions)
        self._methods = MethodDeltas(family, self.directions, cache=cache, statistics=statistics, made=made)

    @property
    def folders(self) -> dict[str, Path]:
        """Direction -> the folder that a whole method's delta is mapped from; `prepare` comes first."""
        return self._methods.folders

    @property
    def statistics_wanted(self) -> frozenset[Need]:
        """The statistics that `prepare` needs, for methods whose deltas are in no cache."""
        return self._methods.statistics_wanted

    def prepare(self, progress: Progress | None = None) -> None:
        """Compute and cache what whole methods need. Does nothing for task vectors."""
        self._methods.prepare(progress)

    def key(self, direction: Direction) -> str:
        """What a direction is within this family: an expert's name, or a hash of all that a method's delta depends on.

        The hash of a part is that of its method.
        """
        return direction.name if direction.kind == "expert" else self._methods.key(direction)

    def kept_in(self, recipe: Recipe, folder: Path) -> Recipe:
        """The recipe with what cannot be computed again from its models kept below ``folder``.

        These are the directions that depend on calibration data, as far as they have a coefficient that is not zero:
        each is linked or copied to ``directions/NAME``, NAME being cut where it is too long for a folder.

        Raises:
            RunError: The disk refuses.
        """
        table = recipe.coefficients
        return replace(
            recipe,
            directions=tuple(
                self._methods.kept_in(direction, folder / "directions" / _folder_name(direction.name))
                if direction.kind != "expert" and table[:, column].any()
                else direction
                for column, direction in enumerate(recipe.directions)
            ),
        )

    def segments(self, parameter: str, unused: Collection[str] = ()) -> list[Segment]:
        """The parameter's segments; with a cache, `prepare` must have been called if there are whole methods.

        Args:
            parameter: Which one.
            unused: Names of directions whose coefficients are 0 there: deltas of methods among them are not made.
        """
        family = self.family
        experts = [direction for direction in self.directions if direction.kind == "expert"]
        views = all(family.is_view(who, parameter) for who in ["base", *(e.name for e in experts)])
        whole = {
            direction.name: None if direction.name in unused else self._methods.delta(direction, parameter)
            for direction in self.directions
            if direction.kind != "expert"
        }
        segments = []
        for box in family.boxes(parameter):
            sources: list[AnySource] = [
                self._expert(direction.name, parameter, box)
                if direction.kind == "expert"
                else _box(whole[direction.name], box)
                for direction in self.directions
            ]
            temporary = not views or (bool(whole) and not self._methods.mapped)
            segment = Segment(box, family.read_box("base", parameter, box), tuple(sources), temporary)
            segments.append(placed(segment, family.parameters[parameter].shape))
        return segments

    def _expert(self, expert: str, parameter: str, box: tuple[slice, ...]) -> AnySource:
        family = self.family
        form = family.delta_form(expert, parameter)
        if form == "unchanged":
            return None
        if form == "dense":
            return Source(family.read_box(expert, parameter, box), absolute=True)
        factors = form.box(box)

        def exact() -> torch.Tensor:
            return family.read_box(expert, parameter, box)

        return LowRank(factors.b, factors.a, factors.scaling, exact)

    def untouched(self) -> dict[str, frozenset[str]]:
        """Direction -> the parameters that it leaves as they are in the base, bit for bit.

        Experts are compared once; the answer is remembered by the models' content. A method's delta is zero where
        every expert's is, if it keeps the base there.
        """
        from optmerge.models.cache import recall, remember

        key = f"{self.family.fingerprint()}-{self.family.heads}"  # heads decide which parameters there are
        known = recall("untouched", key)
        if known is None or set(known) != set(self.family.experts):
            known = {
                expert: [name for name in self.family.parameters if self._same(expert, name)]
                for expert in self.family.experts
            }
            remember("untouched", key, known)
        experts = {expert: frozenset(names) for expert, names in known.items()}
        everywhere = frozenset.intersection(*experts.values())
        missing = self.absent()

        def untouched(direction: Direction) -> frozenset[str]:
            if direction.kind == "expert":
                return experts[direction.expert]
            absent = missing[direction.name]
            if direction.expert:
                return experts[direction.expert] | absent
            return everywhere | absent if self._methods.keeps_base(direction) else absent

        return {direction.name: untouched(direction) for direction in self.directions}

    def absent(self) -> dict[str, frozenset[str]]:
        """Direction -> the parameters that it has not, whatever the models' values: bands of what is not divided."""
        return {
            direction.name: frozenset(name for name in self.family.parameters if self._methods.absent(direction, name))
            for direction in self.directions
        }

    def magnitudes(self) -> dict[str, dict[str, float]]:
        """Direction -> parameter -> mean |task vector|; of a whole method, the mean over the experts'."""
        experts = task_vector_magnitudes(self.family)
        return {
            direction.name: experts[direction.expert]
            if direction.expert
            else {name: sum(of[name] for of in experts.values()) / len(experts) for name in self.family.parameters}
            for direction in self.directions
        }

    def _same(self, expert: str, name: str) -> bool:
        form = self.family.delta_form(expert, name)
        if form == "dense":
            return torch.equal(self.family.read(expert, name), self.family.read("base", name))
        return form == "unchanged"


def _box(delta: torch.Tensor | None, box: tuple[slice, ...]) -> Source | None:
    return None if delta is None else Source(delta[box], absolute=False)


def _folder_name(direction: str) -> str:
    """A direction's name as a folder's: settings with a weight per expert can be longer than a folder's name may be."""
    name = quote(direction, safe="+=,")
    return name if len(name) <= LONGEST else f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
