"""Tensors as they are, of one model each: by parameter an expert's task vector, or nothing where the base stays.

method = Passthrough("math", {"*.layers.[0-3].*": "code", "embedding": "base"}, experts=("math", "code"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import get_args

import torch

from optmerge.errors import ConfigError, did_you_mean
from optmerge.merging.methods.base import Method, Models
from optmerge.merging.methods.elementwise import empty_delta
from optmerge.merging.methods.vectors import RawVectors
from optmerge.models.roles import RoleKind
from optmerge.records import Progress

BASE = "base"


class Passthrough(Method):
    """The task vector of the expert that a parameter is taken from.

    Linear: an expert's part is its task vector where it is taken and zero elsewhere.

    Args:
        source: Whose parameters are taken where no pattern matches: an expert, or `BASE`.
        take: Glob over parameter names, or a role -> an expert, or `BASE`. The last that matches wins.
        experts: Names of the experts.
    """

    linear = True

    def __init__(self, source: str, take: Mapping[str, str], *, experts: Sequence[str]) -> None:
        super().__init__((1.0,) * len(experts))
        self.source = source
        self.take = take

    def prepare(self, models: Models, progress: Progress | None = None) -> None:
        """Check that every pattern matches a parameter.

        Raises:
            ConfigError: One does not.
        """
        roles = {name: models.kind(name).role for name in models.names}
        for pattern in self.take:
            if not any(_matches(pattern, name, role) for name, role in roles.items()):
                known = [*get_args(RoleKind), *roles]
                raise ConfigError(
                    f"passthrough.take.{pattern} matches no parameter. Use a role ({', '.join(get_args(RoleKind))}) or "
                    f"a glob over parameter names such as {next(iter(roles), '')!r}."
                    + (did_you_mean(pattern, known) if "*" not in pattern else "")
                )

    def source_of(self, models: Models, name: str) -> str:
        """Whose parameter is taken: an expert's name, or `BASE`."""
        role = models.kind(name).role
        return [self.source, *(who for pattern, who in self.take.items() if _matches(pattern, name, role))][-1]

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        source, vectors = self.source_of(models, name), RawVectors(models)
        delta, view = empty_delta(vectors, name)
        if source == BASE:
            return delta.zero_()
        for chunk in vectors.chunks(source, name):
            view[chunk.box] = chunk.values
        return delta

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`."""
        source, delta = self.source_of(models, name), self.delta(models, name)
        return [delta if expert == source else torch.zeros_like(delta) for expert in models.experts]


def _matches(pattern: str, name: str, role: str) -> bool:
    return pattern == role or fnmatchcase(name, pattern)
