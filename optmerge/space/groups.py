"""Which parameters share their coefficients.

    groups = make_groups(parameters, "layer-wise")

``parameters`` are (name, role) pairs in module order; roles come from the module tree, so that no
architecture is named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class RoleLike(Protocol):
    """What a parameter is for: `optmerge.models.roles.Role`."""

    @property
    def kind(self) -> str:
        """embedding, attention, mlp, norm, final-norm, head or other."""

    @property
    def layer(self) -> int | None:
        """Index of the transformer layer, None outside the layers."""

    @property
    def part(self) -> str | None:
        """Vision or connector in a vision-language model; None is the language model, and every other model."""


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Parameters with common coefficients; names are those of the module."""

    name: str
    parameters: tuple[str, ...]
    layer: int | None
    kind: str


def make_groups(roles: Mapping[str, RoleLike], granularity: str) -> tuple[TensorGroup, ...]:
    """Group parameters by ``granularity``, in module order of each group's first parameter.

    model-wise and task-wise have one group; layer-wise one per layer, and one each for embeddings, final norm, head
    and what has no role; layer-kind-wise splits a layer into attention, mlp, norm and other; tensor-wise has one group
    per parameter. In a vision-language model the vision tower and the connector have groups of their own.
    """
    members: dict[str, list[str]] = {}
    facts: dict[str, tuple[int | None, str]] = {}
    for parameter, role in roles.items():
        name, layer, kind = _group_of(parameter, role, granularity)
        members.setdefault(name, []).append(parameter)
        facts[name] = (layer, kind)
    return tuple(TensorGroup(name, tuple(names), *facts[name]) for name, names in members.items())


def _group_of(parameter: str, role: RoleLike, granularity: str) -> tuple[str, int | None, str]:
    if granularity in ("model-wise", "task-wise"):
        return "model", None, "model"
    if granularity == "tensor-wise":
        return parameter, role.layer, role.kind
    where = "" if role.part is None else f"{role.part}."
    if role.layer is None:
        return f"{where}{role.kind}", None, role.kind
    if granularity == "layer-wise":
        return f"{where}layer.{role.layer}", role.layer, "layer"
    return f"{where}layer.{role.layer}.{role.kind}", role.layer, role.kind
