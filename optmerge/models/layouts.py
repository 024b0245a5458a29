"""What was found out about a family from headers and configs alone, remembered for the next time.

Finding it out takes transformers' model classes, whose import costs more than merging a small model. It depends on
the configs, on names, shapes and types of the tensors, and on code; all of these make the key, so that another model
of an architecture that was seen before is opened from memory too, and nothing stale is ever used.

    key = layout_key(checkpoints, heads="auto")         # None for families with adapters
    layout = recall_layout(key, checkpoints)            # None when it was not seen before
    remember_layout(key, layout)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch

from optmerge.models.architecture import ModelKind
from optmerge.models.cache import recall, remember
from optmerge.models.checkpoint import Checkpoint, FolderCheckpoint, config_facts
from optmerge.models.mapping import CheckpointMap, Piece
from optmerge.models.roles import Part, Role, RoleKind
from optmerge.models.ties import has_own_output


@dataclass(frozen=True, slots=True)
class Parameter:
    """A merged parameter in module layout; its dtype is the base's on disk.

    ``input_first``: a matrix (or a stack of them) stored [in, out], as in GPT-2's Conv1D, and not [out, in].
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    dtype: torch.dtype
    role: Role
    input_first: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """See `optmerge.models.family.Family`, whose fields these are; ``notes`` are what a user should be told."""

    kind: ModelKind
    heads: str
    parameters: dict[str, Parameter]
    head_parameters: tuple[str, ...]
    maps: dict[str, CheckpointMap]
    notes: tuple[str, ...]


def layout_key(checkpoints: Mapping[str, Checkpoint], *, heads: str) -> str | None:
    """A hash of everything that a family's layout depends on; None where it is not remembered."""
    if not all(isinstance(checkpoint, FolderCheckpoint) for checkpoint in checkpoints.values()):
        return None
    facts = [
        code_hash(Path(__file__).parent),
        version("transformers"),
        heads,
        [
            [
                who,
                _config(checkpoint),
                [[info.name, list(info.shape), str(info.dtype)] for info in checkpoint.tensors.values()],
                has_own_output(checkpoint),
            ]
            for who, checkpoint in checkpoints.items()
        ],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def recall_layout(key: str | None, checkpoints: Mapping[str, Checkpoint]) -> Layout | None:
    """The layout that was remembered under ``key``."""
    known = recall("layouts", key) if key else None
    if known is None:
        return None
    maps = {
        who: _map_from(known["maps"][index], checkpoints[who])
        for who, index in zip(checkpoints, known["map_of"], strict=True)
    }
    parameters = {
        name: Parameter(
            name,
            tuple(shape),
            math.prod(shape),
            getattr(torch, dtype),
            Role(cast(RoleKind, kind), layer, cast(Part | None, part)),
            flipped,
        )
        for name, shape, dtype, kind, layer, part, flipped in known["parameters"]
    }
    return Layout(
        known["kind"], known["heads"], parameters, tuple(known["head_parameters"]), maps, tuple(known["notes"])
    )


def remember_layout(key: str | None, layout: Layout) -> None:
    """Keep a layout for the next time."""
    if key is None:
        return
    written: list[dict[str, Any]] = []
    map_of = []
    for layout_map in layout.maps.values():
        facts = _map_to(layout_map)
        if facts not in written:
            written.append(facts)
        map_of.append(written.index(facts))
    parameters = [
        [p.name, p.shape, str(p.dtype).removeprefix("torch."), p.role.kind, p.role.layer, p.role.part, p.input_first]
        for p in layout.parameters.values()
    ]
    remember(
        "layouts",
        key,
        {
            "kind": layout.kind,
            "heads": layout.heads,
            "parameters": parameters,
            "head_parameters": layout.head_parameters,
            "maps": written,
            "map_of": map_of,
            "notes": layout.notes,
        },
    )


@cache
def code_hash(folder: Path) -> str:
    """A hash of the modules in a folder: this package's decide about layouts, beside data."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def _config(checkpoint: Checkpoint) -> object:
    path = checkpoint.folder / "config.json"
    facts = config_facts(path)  # refuses what is no mapping
    return None if facts is None else [facts, json.loads(path.read_text(encoding="utf-8")).get("architectures")]


def _map_to(layout: CheckpointMap) -> dict[str, Any]:
    def piece(piece: Piece) -> list[Any]:
        index = [[cut.start, cut.stop] for cut in piece.index]
        return [piece.disk, piece.parameter, index, piece.view, piece.lengths]

    facts = {
        "pieces": [piece(one) for one in layout.pieces],
        "shapes": layout.shapes,
        "buffers": {name: piece(one) for name, one in layout.buffer_pieces.items()},
        "duplicates": layout.duplicates,
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))  # tuples become lists, so that maps can be compared
    return plain


def _map_from(facts: Mapping[str, Any], checkpoint: Checkpoint) -> CheckpointMap:
    def piece(stored: list[Any]) -> Piece:
        disk, parameter, index, view, lengths = stored
        strided = None if view is None else (tuple(view[0]), tuple(view[1]), view[2])
        return Piece(disk, parameter, tuple(slice(lo, hi) for lo, hi in index), strided, tuple(lengths))

    return CheckpointMap(
        [piece(one) for one in facts["pieces"]],
        disk_shapes={name: tuple(info.shape) for name, info in checkpoint.tensors.items()},
        shapes={name: tuple(shape) for name, shape in facts["shapes"].items()},
        buffers={name: piece(one) for name, one in facts["buffers"].items()},
        duplicates=facts["duplicates"],
        reference=checkpoint.reference,
    )
