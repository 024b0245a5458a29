"""Directions as tensors: for every parameter, the list of deltas that coefficients multiply.

An expert's task vector is never made: it is read as (expert, base) and subtracted chunk by chunk. The delta of a whole
method is computed once per parameter, kept in a cache file by content hash, and mapped.

    deltas = Deltas(family, directions, cache=cache_dir() / "directions")
    deltas.prepare(progress)
    sources = deltas.sources("encoder.layer.0.attention.self.query.weight")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optmerge.atomic import atomic_path
from optmerge.config.methods import IsoCConfig, MethodConfig, TaskArithmeticConfig
from optmerge.errors import ConfigError
from optmerge.merging.iso_c import iso_c
from optmerge.merging.recipe import Direction
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.models.family import Family


@dataclass(frozen=True, slots=True)
class Source:
    """Where one direction's delta of one parameter comes from.

    Attributes:
        tensor: The expert's parameter, or the delta itself; CPU, module layout, never written to.
        absolute: True when ``tensor`` is a whole parameter from which the base must be subtracted.
    """

    tensor: torch.Tensor
    absolute: bool


def expand_directions(directions: Sequence[str | MethodConfig], experts: Sequence[str]) -> tuple[Direction, ...]:
    """The configured list with "experts" replaced by one direction per expert.

    Raises:
        ConfigError: A direction appears twice, or is plain task arithmetic (which is what "experts" stands for).
    """
    expanded: list[Direction] = []
    for entry in directions:
        if isinstance(entry, str):
            expanded += [Direction(name, "expert") for name in experts]
        elif isinstance(entry, TaskArithmeticConfig):
            raise ConfigError(
                "directions: task_arithmetic has no delta of its own; write 'experts' for the task vectors."
            )
        else:
            expanded.append(Direction(entry.name, "method", entry))
    names = [direction.name for direction in expanded]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"directions: {name!r} appears {names.count(name)} times; each direction may stand once.")
    return tuple(expanded)


class Deltas:
    """The deltas of a family along some directions."""

    def __init__(self, family: Family, directions: Sequence[Direction], *, cache: Path) -> None:
        self.family = family
        self.directions = tuple(directions)
        self.cache = cache
        self._mapped: dict[str, dict[str, torch.Tensor]] = {}

    def prepare(self, progress: Progress | None = None) -> None:
        """Compute and cache what whole methods need. Does nothing for task vectors."""
        for direction in self.directions:
            if direction.kind == "method" and direction.name not in self._mapped:
                assert direction.config is not None
                self._mapped[direction.name] = self._method(direction.config, progress)

    def sources(self, parameter: str) -> list[Source]:
        """One `Source` per direction, in their order; `prepare` must have been called if there are whole methods."""
        return [
            Source(self.family.read(direction.name, parameter), absolute=True)
            if direction.kind == "expert"
            else Source(self._mapped[direction.name][parameter], absolute=False)
            for direction in self.directions
        ]

    def untouched(self) -> dict[str, frozenset[str]]:
        """Direction -> the parameters that it leaves as they are in the base, bit for bit.

        Experts are compared once; the answer is remembered by the models' content. A method's delta is zero where
        every expert's is.
        """
        from optmerge.models.cache import recall, remember

        key = self.family.fingerprint()
        known = recall("untouched", key)
        if known is None or set(known) != set(self.family.experts):
            known = {
                expert: [
                    name
                    for name in self.family.parameters
                    if torch.equal(self.family.read(expert, name), self.family.read("base", name))
                ]
                for expert in self.family.experts
            }
            remember("untouched", key, known)
        experts = {expert: frozenset(names) for expert, names in known.items()}
        everywhere = frozenset.intersection(*experts.values())
        return {
            direction.name: experts[direction.name] if direction.kind == "expert" else everywhere
            for direction in self.directions
        }

    def _method(self, config: MethodConfig, progress: Progress | None) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file, save_file

        path = self.cache / f"{self._key(config)}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            computed = {}
            for done, parameter in enumerate(self.family.parameters):
                computed[parameter] = method_delta(self.family, parameter, config).contiguous()
                if progress:
                    progress(config.name, done + 1, len(self.family.parameters))
            with atomic_path(path) as temporary:
                save_file(computed, temporary)
        return load_file(path)

    def _key(self, config: MethodConfig) -> str:
        # The SVD's last bits depend on the library and on how many threads share the work.
        identity = [
            self.family.fingerprint(),
            config.model_dump(),
            list(self.family.experts),
            self.family.heads,
            torch.__version__,
            torch.get_num_threads(),
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def method_delta(family: Family, parameter: str, config: MethodConfig) -> torch.Tensor:
    """The delta, fp32 in module layout, that a whole method gives one parameter at scale 1."""
    base = family.read("base", parameter).float()
    deltas = [family.read(name, parameter).float() - base for name in family.experts]
    match config:
        case IsoCConfig():
            return iso_c(deltas, tolerance=config.tolerance)
        case TaskArithmeticConfig():
            return torch.stack(deltas).sum(dim=0)
