"""Whether base and experts fit: every way in which they may not has its own message, naming tensors and a remedy.

Members are the base (who = "base") and the experts; the checks run in this order:

check_same_architecture(checkpoints, configs)
check_ties(members)
check_family(members, merged, head)          # headers only
check_values_of(checkpoints, maps, merged, head)       # NaN, Inf, tied copies that differ
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from optmerge.errors import ModelError
from optmerge.models.architecture import body_prefix
from optmerge.models.checkpoint import Checkpoint, list_names
from optmerge.models.mapping import CheckpointMap
from optmerge.models.values import find_nonfinite
from optmerge.models.vision_tower import is_clip

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Config keys that say nothing about what the body computes, or that shapes are compared for anyway.
_HARMLESS = re.compile(
    r"_name_or_path|architectures|(torch_)?dtype|transformers_version|id2label|label2id|num_labels|problem_type|vocab_size"
    r"|.*_token_id|.*dropout.*|.*drop_rate|initializer_.*|use_cache|output_.*|return_dict|finetuning_task|tokenizer_class"
    r"|max_position_embeddings|n_positions|gradient_checkpointing|task_specific_params|_.*"
)
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_BUFFER_ENDS = ("position_ids", "token_type_ids", "inv_freq", "masked_bias", "attn.bias", "relative_position_index")


@dataclass(frozen=True)
class Member:
    """The base or an expert while it is being checked: its checkpoint, and an empty model of the experts' class."""

    who: str
    checkpoint: Checkpoint
    config: PreTrainedConfig
    model: nn.Module
    map: CheckpointMap

    @property
    def title(self) -> str:
        """How messages call it."""
        return title_of(self.who, self.checkpoint)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter -> the shape that its disk tensors give, or the config where there are none."""
        wanted = {name: tuple(value.shape) for name, value in self.model.named_parameters()}
        return wanted | {name: found for name, (found, _) in self.map.mismatched.items()}

    def disk_names(self, parameters: Iterable[str]) -> list[str]:
        """The disk tensors of those parameters that have any."""
        absent = set(self.map.missing)
        known = [name for name in parameters if name in self.shapes and name not in absent]
        return list(dict.fromkeys(disk for name in known for disk in self.map.disk_names(name)))


def check_same_architecture(checkpoints: Mapping[str, Checkpoint], configs: Mapping[str, PreTrainedConfig]) -> None:
    """Every member must be of the base's model type, and every expert of the same class.

    Raises:
        ModelError: One is not.
    """
    wanted = configs["base"].model_type
    experts = [who for who in configs if who != "base"]
    for who in experts:
        if configs[who].model_type != wanted:
            raise ModelError(
                f"The expert {who} ({checkpoints[who].reference}) is a {configs[who].model_type} model and the base "
                f"{checkpoints['base'].reference} a {wanted} model. Experts must be fine-tuned from the base; "
                "name the base that this one was made from."
                + (" To merge the vision towers of CLIP models, set heads: zero-shot." if _towers(configs) else "")
            )
    classes = {who: (next(iter(configs[who].architectures or ()), "AutoModel")) for who in experts}
    for who in experts[1:]:
        if classes[who] != classes[experts[0]]:
            raise ModelError(
                f"The experts are of different classes: {experts[0]} is a {classes[experts[0]]}, {who} a "
                f"{classes[who]}. All experts of a merge must be of one class; save them with it, or merge them "
                "apart."
            )


def _towers(configs: Mapping[str, PreTrainedConfig]) -> bool:
    return all(map(is_clip, configs.values()))


def check_ties(members: Mapping[str, Member]) -> None:
    """All members must tie their output to their input embedding, or none.

    Raises:
        ModelError: One is tied by its config and another not, or has a copy of the tied tensor on disk and another not.
    """
    for who, expert in members.items():
        if who != "base":
            _check_tie(members["base"], expert)


def _check_tie(base: Member, expert: Member) -> None:
    """An output that is tied to the input embedding must be so in both, and stored in the same way."""
    both = f"{_capital(expert.title)} and {base.title} disagree about the language-model head: "
    remedy = (
        " If both heads equal their embeddings, load the odd model with transformers, set "
        "config.tie_word_embeddings = True, call tie_weights() and save it again; if not, untie and save the other "
        "one."
    )
    name, theirs = _tied_output(base.model), _tied_output(expert.model)
    if name != theirs:
        tied, untied = (base, expert) if name else (expert, base)
        raise ModelError(
            f"{both}it is tied to the input embedding {name or theirs} by the config of {tied.title}, and a tensor "
            f"of its own by that of {untied.title}.{remedy}"
        )
    if name is None or name in base.map.missing or name in expert.map.missing:
        return
    ours, others = base.map.disk_names(name), expert.map.disk_names(name)
    if len(ours) != len(others):
        longer, shorter = (base, expert) if len(ours) > len(others) else (expert, base)
        extra = max(ours, others, key=len)[-1]
        raise ModelError(
            f"{both}{longer.title} has the tensor {extra} on disk, which its config ties to {name}; in "
            f"{shorter.title} the tensor is absent.{remedy}"
        )


def _tied_output(model: nn.Module) -> str | None:
    """The parameter (the input embedding's, usually) that the output layer is tied to; None when it has its own."""
    try:
        output = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    weight = getattr(output, "weight", None)
    names = [name for name, value in model.named_parameters(remove_duplicate=False) if value is weight]
    return names[0] if len(names) > 1 else None


def check_family(members: Mapping[str, Member], merged: Sequence[str], head: Sequence[str]) -> None:
    """Check names, shapes and dtypes of all members; headers only.

    Raises:
        ModelError: Something does not fit; the first few tensors are named, and how many there are.
    """
    base = members["base"]
    _check_whole(base, merged)
    _check_extra(base, head)
    for who, expert in members.items():
        if who != "base":
            _check_layout(base, expert, merged)
            _check_whole(expert, [*merged, *head])
            _check_shapes(base, expert, merged)
            _check_extra(expert, ())
    for member in members.values():
        _check_dtypes(member, [*merged, *head])


def _check_whole(member: Member, parameters: Sequence[str]) -> None:
    absent = [name for name in parameters if name in set(member.map.missing)]
    if absent:
        raise ModelError(
            f"{_capital(member.title)} lacks {list_names(absent)} that its architecture {type(member.model).__name__} "
            "needs. It is incomplete, or was saved without them: save it again from the whole model."
        )
    odd = {name: shapes for name, shapes in member.map.mismatched.items() if name in set(parameters)}
    if odd:
        name, (found, wanted) = next(iter(odd.items()))
        raise ModelError(
            f"{_capital(member.title)} disagrees with its own config.json about the shapes of {list_names(odd)}: "
            f"{name} is {list(found)} on disk and {list(wanted)} by the config. Use the config.json that belongs to "
            "these weights."
        )


def _check_layout(base: Member, expert: Member, merged: Sequence[str]) -> None:
    prefix = body_prefix(base.model)
    merged_all = any(not name.startswith(prefix) for name in merged)
    theirs = [name for name in expert.shapes if merged_all or name.startswith(prefix)]
    missing = [name for name in base.shapes if (merged_all or name.startswith(prefix)) and name not in expert.shapes]
    extra = [name for name in theirs if name not in base.shapes]
    if missing or extra:
        lacks = f"it lacks {list_names(missing)} of the base" if missing else ""
        has = f"it has {list_names(extra)} that the base does not have" if extra else ""
        raise ModelError(
            f"{_capital(expert.title)} does not fit {base.title}: "
            f"{' and '.join(part for part in (lacks, has) if part)}. It has another number of layers or other "
            "options in its config.json; name the base that it was made from."
        )


def _check_shapes(base: Member, expert: Member, merged: Sequence[str]) -> None:
    odd = [name for name in merged if expert.shapes[name] != base.shapes[name]]
    if odd:
        name = odd[0]
        raise ModelError(
            f"{_capital(expert.title)} does not fit {base.title}: the shapes of {list_names(odd)} differ; {name} is "
            f"{list(expert.shapes[name])}, and {list(base.shapes[name])} in the base. Name the base that it was made "
            "from."
        )


def _check_extra(member: Member, head: Sequence[str]) -> None:
    """Tensors that nothing takes, other than buffers; a base may have another head than the experts."""
    model = member.model
    known = {name for name, _ in model.named_buffers()}
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    prefix = body_prefix(model)
    extra = [
        name
        for name in member.map.unused
        if name not in known
        and f"{prefix}{name}" not in known
        and not name.endswith(_BUFFER_ENDS)
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    if member.who == "base" and head:
        extra = [name for name in extra if name.startswith(prefix)]
    if extra:
        raise ModelError(
            f"{_capital(member.title)} has {list_names(extra)} that the architecture {type(model).__name__} does not "
            "take. They are left over from training, or its config.json is another model's: save it again with "
            "save_pretrained."
        )


def config_notes(base: Member, experts: Iterable[Member]) -> tuple[str, ...]:
    """Shapes do not show everything: which settings of the experts' configs the base's will stand in for."""
    return tuple(note for expert in experts if (note := _config_note(base, expert)) is not None)


def _config_note(base: Member, expert: Member) -> str | None:
    ours, theirs = base.config.to_dict(), expert.config.to_dict()
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and not _HARMLESS.fullmatch(key)]
    if not keys:
        return None
    shown = ", ".join(f"{key} {theirs.get(key)!r} (base {ours.get(key)!r})" for key in keys[:5])
    return f"The config of the expert {expert.who} differs from the base's, which is used: {shown}"


def _check_dtypes(member: Member, parameters: Sequence[str]) -> None:
    tensors = member.checkpoint.tensors
    odd = [disk for disk in member.disk_names(parameters) if tensors[disk].dtype not in _FLOATS]
    if odd:
        raise ModelError(
            f"{_capital(member.title)} stores {list_names(odd)} as "
            f"{str(tensors[odd[0]].dtype).removeprefix('torch.')}; merging needs float64, float32, bfloat16 or "
            "float16. Use the model before it was quantized."
        )


def check_values_of(
    checkpoints: Mapping[str, Checkpoint],
    maps: Mapping[str, CheckpointMap],
    merged: Sequence[str],
    head: Sequence[str],
) -> None:
    """Look for NaN and Inf in what is merged and in the heads that are used, and for tied tensors that differ.

    Raises:
        ModelError: There are some; the tensors are named.
    """
    for who, checkpoint in checkpoints.items():
        layout, title = maps[who], _capital(title_of(who, checkpoint))
        wanted = [name for name in (merged if who == "base" else [*merged, *head]) if name in layout]
        disks = dict.fromkeys(disk for name in wanted for disk in layout.disk_names(name))
        bad = find_nonfinite(checkpoint, disks)
        if bad:
            raise ModelError(
                f"{title} has NaN or infinite values in {list_names(bad)}. Its training diverged or "
                "the file was damaged after it was written; use another checkpoint of it."
            )
        for disk, parameter in layout.duplicates.items():
            if not torch.equal(checkpoint.read(disk), layout.read(checkpoint, parameter)):
                raise ModelError(
                    f"{title} stores {disk} apart from {parameter} with other values, although its "
                    "config says that they are tied. Set tie_word_embeddings to false in its config.json (and untie "
                    "the other models), or remove the copy that is not meant."
                )


def title_of(who: str, checkpoint: Checkpoint) -> str:
    """How messages call the base or an expert."""
    return f"the base {checkpoint.reference}" if who == "base" else f"the expert {who} ({checkpoint.reference})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
