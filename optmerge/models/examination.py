"""How the members of a family fit: which parameters are merged, where each checkpoint has them, and whose heads stay.

    layout, aligned = examine(checkpoints, "auto", compare_tokens(checkpoints), "refuse")

Members are instances of transformers' model classes on the meta device, so that no weight is read. What is found is
remembered (`optmerge.models.layouts`), and `optmerge.models.family.open_family` examines only what it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from optmerge.errors import ConfigError
from optmerge.models.architecture import GENERATIVE, ModelKind, body_prefix, kind_of, model_on_meta
from optmerge.models.checkpoint import Checkpoint
from optmerge.models.conversions import checkpoint_map
from optmerge.models.layouts import Layout, Parameter
from optmerge.models.roles import Role, input_first, roles
from optmerge.models.ties import OUTPUT, has_own_output, untie
from optmerge.models.validation import Member, check_family, check_same_architecture, check_ties, config_notes
from optmerge.models.vision_tower import PROJECTION, check_clip, require_projection
from optmerge.models.vocabulary import Policy, Tokens, align

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Heads = Literal["own", "merged", "zero-shot"]
WantedHeads = Literal["auto", "own", "merged", "zero-shot"]


class Configs(Mapping[str, "PreTrainedConfig"]):
    """``"base"`` and every expert's name -> its config, read when it is first asked for."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._read: dict[str, PreTrainedConfig] = {}

    def __getitem__(self, who: str) -> PreTrainedConfig:
        if who not in self._read:
            self._read[who] = self._checkpoints[who].config()
        return self._read[who]

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoints)

    def __len__(self) -> int:
        return len(self._checkpoints)


def examine(
    checkpoints: Mapping[str, Checkpoint],
    heads: WantedHeads,
    tokens: Tokens,
    vocabulary: Policy,
) -> tuple[Layout, Mapping[str, Checkpoint]]:
    """Find a family's layout with transformers' model classes, and check that its members fit.

    Args:
        checkpoints: ``"base"`` and every expert's name -> its checkpoint.
        heads: What is wanted of the heads.
        tokens: How the members' tokens compare.
        vocabulary: What is done where they differ.

    Returns:
        The layout, and the experts that were brought into the base's vocabulary.

    Raises:
        ModelError: A member does not fit; its tensors are named.
        ConfigError: Heads that differ, or that are none, were to be merged or kept.
    """
    configs = Configs(checkpoints)
    first = next(who for who in checkpoints if who != "base")
    if heads == "zero-shot":
        check_clip(checkpoints, configs)
        kind: ModelKind = "zero-shot-image-classification"
    else:
        check_same_architecture(checkpoints, configs)
        kind = kind_of(configs[first])
    architecture = next(iter(configs[first].architectures or ()), None) if kind == "other" else None

    def member(who: str, checkpoint: Checkpoint, config: PreTrainedConfig) -> Member:
        empty = model_on_meta(config, kind, architecture=architecture)
        if has_own_output(checkpoint):
            untie(empty, [OUTPUT])
        described = config if kind != "zero-shot-image-classification" else cast(Any, empty).config
        return Member(who, checkpoint, described, empty, checkpoint_map(empty, checkpoint))

    members = {who: member(who, checkpoint, configs[who]) for who, checkpoint in checkpoints.items()}
    check_ties(members)
    aligned = align(members, tokens, vocabulary)
    members |= {who: member(who, checkpoint, checkpoint.config()) for who, checkpoint in aligned.items()}
    model = members[first].model
    chosen = _choose_heads(heads, members, kind)
    prefix = body_prefix(model) if chosen == "own" else ""
    names = [name for name, _ in model.named_parameters()]
    if chosen == "zero-shot":
        require_projection(members["base"].map, checkpoints["base"].reference)
        if any(PROJECTION in member.map.missing for member in members.values()):
            names.remove(PROJECTION)  # it stays the base's
    merged = [name for name in names if name.startswith(prefix)]
    head = tuple(name for name in names if not name.startswith(prefix))
    check_family(members, merged, head)
    found, flipped = roles(members["base"].model), input_first(members["base"].model)
    parameters = {name: _parameter(name, members["base"], found[name], name in flipped) for name in merged}
    notes = config_notes(members["base"], [members[who] for who in checkpoints if who != "base"])
    maps = {who: member.map for who, member in members.items()}
    return Layout(kind, chosen, parameters, head, maps, notes), aligned


def _choose_heads(wanted: WantedHeads, members: Mapping[str, Member], kind: ModelKind) -> Heads:
    """Whether heads are merged; what is wanted must be possible."""
    if wanted == "zero-shot":
        return "zero-shot"
    trouble = _why_heads_differ(members, kind)
    if wanted == "own":
        if not body_prefix(members[next(name for name in members if name != "base")].model):
            raise ConfigError("heads is 'own', and these models have no head apart from their body. Use heads: merged.")
        return "own"
    if wanted == "merged" and trouble:
        raise ConfigError(f"heads is 'merged', and the heads cannot be merged: {trouble}. Use heads: own (or auto).")
    return "own" if trouble else "merged"


def _why_heads_differ(members: Mapping[str, Member], kind: ModelKind) -> str:
    """The first reason why heads cannot be merged, or an empty string."""
    expert = next(member for who, member in members.items() if who != "base")
    prefix = body_prefix(expert.model)
    if not prefix:
        return ""

    def head_of(member: Member) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in member.shapes.items() if not name.startswith(prefix)}

    shapes = head_of(expert)
    labels = getattr(expert.config, "id2label", None)
    for who, member in members.items():
        own = head_of(member)
        lacking = [name for name in own if name in member.map.missing]
        if who == "base" and lacking and member.config.architectures != expert.config.architectures:
            return f"the base has no {lacking[0]}"
        if own != shapes:
            name = next(name for name in {**shapes, **own} if own.get(name) != shapes.get(name))
            return f"{name} differs between {expert.who} ({shapes.get(name)}) and {who} ({own.get(name)})"
        if shapes and kind not in GENERATIVE and getattr(member.config, "id2label", None) != labels:
            return f"the labels of {expert.who} and {who} differ"
    return ""


def _parameter(name: str, base: Member, role: Role, flipped: bool) -> Parameter:
    shape = base.shapes[name]
    dtypes = [base.checkpoint.tensors[disk].dtype for disk in base.map.disk_names(name)]
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return Parameter(name, shape, math.prod(shape), dtype, role, flipped)
