"""Which parameters share their coefficients, or how a parameter is cut so that its slices have their own.

    groups = make_groups(roles, "layer-wise")

``roles`` has the parameters in module order; roles come from the module tree, so that no architecture is named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from optmerge.merging.slices import Cut, input_cut


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
    """Parameters with common coefficients, or one whose slices have their own; names are those of the module.

    Attributes:
        cut: How the one parameter is cut. It then stands for as many groups, in the cut's order.
    """

    name: str
    parameters: tuple[str, ...]
    layer: int | None
    kind: str
    cut: Cut | None = None

    @property
    def count(self) -> int:
        """Rows of the coefficient table: 1, or as many as there are slices."""
        return 1 if self.cut is None else self.cut.count


class ShapeLike(Protocol):
    """A parameter's shape: `optmerge.models.layouts.Parameter`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """In module layout."""

    @property
    def numel(self) -> int:
        """How many elements."""

    @property
    def input_first(self) -> bool:
        """Whether a matrix is stored [in, out]."""


def make_groups(
    roles: Mapping[str, RoleLike], granularity: str, cuts: Mapping[str, Cut] | None = None
) -> tuple[TensorGroup, ...]:
    """Group parameters by ``granularity``, in module order of each group's first parameter.

    model-wise and task-wise have one group; layer-wise one per layer, and one each for embeddings, final norm, head
    and what has no role; layer-kind-wise splits a layer into attention, mlp, norm and other; tensor-wise has one group
    per parameter, and so have chunk-wise and column-wise, with the parameters in ``cuts`` cut. In a vision-language
    model the vision tower and the connector have groups of their own.
    """
    members: dict[str, list[str]] = {}
    facts: dict[str, tuple[int | None, str]] = {}
    for parameter, role in roles.items():
        name, layer, kind = _group_of(parameter, role, granularity)
        members.setdefault(name, []).append(parameter)
        facts[name] = (layer, kind)
    cuts = cuts or {}
    return tuple(TensorGroup(name, tuple(names), *facts[name], cuts.get(name)) for name, names in members.items())


def column_cuts(roles: Mapping[str, RoleLike], shapes: Mapping[str, ShapeLike]) -> dict[str, Cut]:
    """Parameter -> a group for every input; without those that have one group."""
    cuts = {
        name: input_cut(shapes[name].shape, input_first=shapes[name].input_first, bias=name.endswith("bias"))
        for name in roles
    }
    return {name: cut for name, cut in cuts.items() if cut is not None}


def _group_of(parameter: str, role: RoleLike, granularity: str) -> tuple[str, int | None, str]:
    if granularity in ("model-wise", "task-wise"):
        return "model", None, "model"
    if granularity in ("tensor-wise", "chunk-wise", "column-wise"):
        return parameter, role.layer, role.kind
    where = "" if role.part is None else f"{role.part}."
    if role.layer is None:
        return f"{where}{role.kind}", None, role.kind
    if granularity == "layer-wise":
        return f"{where}layer.{role.layer}", role.layer, "layer"
    return f"{where}layer.{role.layer}.{role.kind}", role.layer, role.kind
