"""A family on disk as an engine over a resident model, without the search around it; for `apply` and `gradient`.

opened = open_engine(folder, experts, form="accumulate")
opened.engine.apply(table)
opened.model(pixel_values=images)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch

from optmerge.merging.deltas import Deltas
from optmerge.merging.directions import expand_directions
from optmerge.merging.engine import Engine
from optmerge.models.family import open_family
from optmerge.models.resident import ResidentModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine with one tensor group per parameter, so that coefficients are tensor-wise.

    Attributes:
        model: The resident model, without gradients.
        engine: Writes into it.
        names: Parameter names; row g of a table belongs to ``names[g]``.
        nbytes: Bytes of the resident parameters.
    """

    model: PreTrainedModel
    engine: Engine
    names: tuple[str, ...]
    nbytes: int


def open_engine(base: Path, experts: Mapping[str, Path], *, form: Literal["accumulate", "hooks"]) -> Opened:
    """Open base and experts, and allocate the resident model in the base's dtype on the CPU."""
    family = open_family(str(base), {name: str(folder) for name, folder in experts.items()}, relative_to=Path())
    names = tuple(family.parameters)
    dtype = family.parameters[names[0]].dtype
    resident = ResidentModel(family, device=torch.device("cpu"), dtype=dtype)
    deltas = Deltas(family, expand_directions(["experts"], list(experts)), cache=None)
    group_of = {name: row for row, name in enumerate(names)}
    engine = Engine(resident.parameters, deltas.segments, group_of, form=form)
    nbytes = sum(parameter.numel() * parameter.itemsize for parameter in resident.parameters.values())
    return Opened(cast("PreTrainedModel", resident.model_for("base")), engine, names, nbytes)
