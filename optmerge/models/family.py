"""A base and its experts, checked to fit each other; the only way that the rest of optmerge sees models.

Parameters go by the names of the experts' class, module layout; recipes speak the base's names on disk.

family = open_family("zoo/base", {"sentiment": "zoo/sentiment"}, relative_to=Path("."))
family.parameters["bert.embeddings.word_embeddings.weight"].role
family.read("sentiment", "bert.embeddings.word_embeddings.weight")    # mapped, module layout; never write to it
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from optmerge.errors import ConfigError
from optmerge.models.adapter import AdapterCheckpoint, DeltaForm, same_values
from optmerge.models.ahead import read_ahead
from optmerge.models.aligned import AlignedCheckpoint
from optmerge.models.architecture import AUTO_CLASSES, ModelKind
from optmerge.models.checkpoint import Checkpoint, open_checkpoint
from optmerge.models.examination import Configs, Heads, WantedHeads, examine
from optmerge.models.layouts import Parameter, layout_key, recall_layout, remember_layout
from optmerge.models.mapping import CheckpointMap
from optmerge.models.validation import check_values_of
from optmerge.models.vocabulary import Policy, compare_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """A base and experts that fit it.

    Attributes:
        kind: What the experts are.
        heads: ``own``: each expert keeps its head, only the body is merged; ``merged``: all of it is; ``zero-shot``:
            CLIP's vision towers are merged (see `vision_tower`), and class names make the heads.
        base: The base's checkpoint.
        experts: The experts' checkpoints by name.
        parameters: The merged parameters in module order, tied ones once, under the names of the experts' class.
        head_parameters: Parameters of the experts that are not merged; empty unless they keep heads of their own.
        maps: ``"base"`` and every expert's name -> its checkpoint map.
        configs: ``"base"`` and every expert's name -> its config.
        num_layers: How many transformer layers there are, without those of a vision tower beside a language model; 0
            when none were found.
    """

    kind: ModelKind
    heads: Heads
    base: Checkpoint
    experts: dict[str, Checkpoint]
    parameters: dict[str, Parameter]
    head_parameters: tuple[str, ...]
    maps: dict[str, CheckpointMap]
    configs: Mapping[str, PreTrainedConfig]
    num_layers: int

    @property
    def sees(self) -> bool:
        """Whether it is a language model that can be shown images."""
        return any(parameter.role.part == "vision" for parameter in self.parameters.values())

    @property
    def auto_class(self) -> str:
        """The Auto class of transformers that loads what is exported."""
        return AUTO_CLASSES.get(self.kind, ("AutoModel",))[-1 if self.sees else 0]

    def checkpoint(self, who: str) -> Checkpoint:
        """The checkpoint of ``"base"`` or of an expert."""
        return self.base if who == "base" else self.experts[who]

    def read(self, who: str, parameter: str) -> torch.Tensor:
        """A parameter of ``"base"`` or an expert in module layout, CPU, a view of the file where possible.

        Never write to it.
        """
        return self.maps[who].read(self.checkpoint(who), parameter)

    def boxes(self, parameter: str) -> tuple[tuple[slice, ...], ...]:
        """The boxes of a parameter that every checkpoint holds as one view each; ``((),)`` is all of it at once."""
        found = {
            tuple(tuple((cut.start, cut.stop) for cut in piece.index) for piece in layout.pieces_to_read(parameter))
            for layout in self.maps.values()
        }
        if len(found) > 1:
            return ((),)
        return tuple(tuple(slice(lo, hi) for lo, hi in box) for box in found.pop())

    def read_box(self, who: str, parameter: str, box: tuple[slice, ...]) -> torch.Tensor:
        """One of a parameter's `boxes`, as `read` gives it."""
        if box:
            for piece in self.maps[who].pieces_to_read(parameter):
                if piece.index == box:
                    return piece.of_disk(self.checkpoint(who).read(piece.disk))
        return self.read(who, parameter)[box]

    def is_view(self, who: str, parameter: str) -> bool:
        """Whether reading a parameter's boxes gives views of mapped files, and never a tensor made for the occasion."""
        checkpoint = self.checkpoint(who)
        if isinstance(checkpoint, AlignedCheckpoint):
            checkpoint = checkpoint.inner
        if who != "base" and isinstance(checkpoint, AdapterCheckpoint):
            return self.delta_form(who, parameter) != "dense"
        return bool(self.boxes(parameter)[0]) or not self.maps[who].pieces_to_read(parameter)[0].index

    def delta_form(self, expert: str, parameter: str) -> DeltaForm:
        """An expert's delta of a merged parameter in module layout, without making it dense.

        The factors of an adapter, when the base that it stands on has the same values there as this family's base
        (whatever folder it is in); ``"unchanged"`` where it leaves them alone; ``"dense"`` in every other case: then
        only `read` tells. Answers are remembered.
        """
        if (expert, parameter) not in self._delta_forms:
            self._delta_forms[expert, parameter] = self._find_delta_form(expert, parameter)
        return self._delta_forms[expert, parameter]

    def _find_delta_form(self, expert: str, parameter: str) -> DeltaForm:
        checkpoint = self.experts[expert]
        if not isinstance(checkpoint, AdapterCheckpoint):
            return "dense"
        pieces = self.maps[expert].pieces_to_read(parameter)
        form = checkpoint.delta_form(pieces)
        if form == "dense" or checkpoint.base.sha256() == self.base.sha256():
            return form
        own = self.maps[expert].read(checkpoint.base, parameter)
        return form if same_values(own, self.read("base", parameter)) else "dense"

    @cached_property
    def _delta_forms(self) -> dict[tuple[str, str], DeltaForm]:
        return {}

    def disk_names(self, parameter: str) -> tuple[str, ...]:
        """The base's disk tensors that hold a parameter; recipes speak these."""
        return self.maps["base"].disk_names(parameter)

    def parameter_of(self, disk_name: str) -> str:
        """The parameter that one of the base's disk tensors belongs to.

        Raises:
            ModelError: No parameter takes it.
        """
        return self.maps["base"].parameter_of(disk_name)

    def fingerprint(self) -> str:
        """A hash of the content of the base and of every expert."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        facts = {"base": self.base.sha256(), "experts": {name: c.sha256() for name, c in self.experts.items()}}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def open_family(
    base: str,
    experts: Mapping[str, str],
    *,
    relative_to: Path,
    heads: WantedHeads = "auto",
    vocabulary: Policy = "refuse",
    allow_pickle: bool = False,
    check_values: bool = True,
) -> Family:
    """Open a base and experts, and check that they fit.

    Headers and configs only, unless ``check_values``: that reads every weight once (NaN, Inf) and remembers the result.
    What headers and configs tell is remembered too (see `layouts`).

    Args:
        base: A model reference. It may be a bare body where the experts have heads.
        experts: Name -> model reference.
        relative_to: What relative folders are relative to.
        heads: ``auto`` merges the heads when base and experts have the same ones, with the same labels.
            ``zero-shot`` takes the vision towers of CLIP models, whole or not, and leaves the rest to the base.
        vocabulary: What is done where the embeddings' rows do not stand for the same tokens (see `vocabulary`).
        allow_pickle: Read ``pytorch_model.bin`` where there are no safetensors.
        check_values: Look for NaN and Inf.

    Raises:
        ModelError: A model cannot be read, or does not fit; the tensors are named.
        ConfigError: There are no experts, or heads that differ are to be merged.
    """
    if not experts:
        raise ConfigError("There are no experts to merge; name at least one beside the base.")
    checkpoints = {
        who: open_checkpoint(reference, relative_to=relative_to, allow_pickle=allow_pickle)
        for who, reference in {"base": base, **experts}.items()
    }
    key = layout_key(checkpoints, heads=heads)
    with read_ahead(checkpoints.values() if check_values else ()) as wait:
        tokens = compare_tokens(checkpoints)
        # Where tokens disagree, what that means is looked at, and said, every time.
        layout = recall_layout(key, checkpoints) if tokens.agree else None
        if layout is None:
            layout, aligned = examine(checkpoints, heads, tokens, vocabulary)
            checkpoints |= aligned
            if not aligned:
                remember_layout(key, layout)
        if check_values:
            wait()
            check_values_of(checkpoints, layout.maps, list(layout.parameters), layout.head_parameters)
    for note in layout.notes:
        log.warning("%s", note)
    found = [parameter.role for parameter in layout.parameters.values() if parameter.role.part is None]
    layers = [role.layer for role in found if role.layer is not None]
    return Family(
        kind=layout.kind,
        heads=cast(Heads, layout.heads),
        base=checkpoints["base"],
        experts={who: checkpoint for who, checkpoint in checkpoints.items() if who != "base"},
        parameters=layout.parameters,
        head_parameters=layout.head_parameters,
        maps=layout.maps,
        configs=Configs(checkpoints),
        num_layers=1 + max(layers, default=-1),
    )
