"""Whether the rows of the embeddings stand for the same tokens in base and experts, and what is done where they do not.

    tokens = compare_tokens(checkpoints)                 # reads tokenizers only where their files differ
    aligned = align(members, tokens, "common")           # expert -> a checkpoint in the base's vocabulary

Policies: ``refuse`` raises an error that says what differs. ``base`` goes by number: the base's rows, experts' further
ones ignored. ``common`` goes by token: rows of tokens that all have are merged wherever each model keeps them. Rows
that an expert has no counterpart for stay the base's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import nn

from optmerge.errors import ModelError
from optmerge.models.adapter import AdapterCheckpoint
from optmerge.models.aligned import AlignedCheckpoint
from optmerge.models.checkpoint import Checkpoint
from optmerge.models.tokens import read_tokens, tokens_digest
from optmerge.models.validation import Member, title_of

log = logging.getLogger(__name__)

Policy = Literal["refuse", "base", "common"]
_SHOWN = 3  # tokens of each sort that a message names


@dataclass(frozen=True)
class Difference:
    """How an expert numbers tokens otherwise than the base.

    Attributes:
        moved: (token, its number in the base, in the expert).
        replaced: (number, the base's token, the expert's), where neither has the other's token anywhere.
        added: (token, number) that the base does not have, at a number that means nothing else there.
        lacking: (token, number) of the base that the expert does not have.
    """

    moved: tuple[tuple[str, int, int], ...]
    replaced: tuple[tuple[int, str, str], ...]
    added: tuple[tuple[str, int], ...]
    lacking: tuple[tuple[str, int], ...]

    @classmethod
    def between(cls, base: Mapping[str, int], expert: Mapping[str, int]) -> Difference:
        """Compare two numberings."""
        gone = {number: token for token, number in base.items() if token not in expert}
        new = sorted(((token, number) for token, number in expert.items() if token not in base), key=lambda x: x[1])
        taken = {number for _, number in new if number in gone}
        return cls(
            moved=tuple((t, base[t], number) for t, number in expert.items() if t in base and base[t] != number),
            replaced=tuple((number, gone[number], token) for token, number in new if number in taken),
            added=tuple((token, number) for token, number in new if number not in taken),
            lacking=tuple((token, number) for number, token in sorted(gone.items()) if number not in taken),
        )

    @property
    def parts(self) -> list[str]:
        """In words, one for each sort of difference; the first few tokens are named."""
        kinds = {
            "added": [f"{token!r} at {number}" for token, number in self.added],
            "moved": [f"{token!r} from {ours} to {theirs}" for token, ours, theirs in self.moved],
            "replaced": [f"{ours!r} by {theirs!r} at {number}" for number, ours, theirs in self.replaced],
            "missing": [f"{token!r} at {number}" for token, number in self.lacking],
        }
        return [_counted(kind, shown) for kind, shown in kinds.items() if shown]


class Tokens:
    """The numberings of a family.

    Args:
        checkpoints: "base" and the experts.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._folders = {who: _tokenizer_folder(checkpoint) for who, checkpoint in checkpoints.items()}
        self._digests = {who: tokens_digest(folder) for who, folder in self._folders.items()}
        self._read: dict[str, Mapping[str, int]] = {}

    def of(self, who: str) -> Mapping[str, int] | None:
        """Token -> number; None where there is no tokenizer."""
        digest = self._digests[who]
        if digest is None:
            return None
        if digest not in self._read:
            self._read[digest] = read_tokens(self._folders[who]) or {}
        return self._read[digest]

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Expert -> how it differs from the base; those that do not are left out, and those that have no tokenizer."""
        ours = self._digests["base"]
        found = {}
        for who, digest in self._digests.items():
            if ours is not None and digest not in (None, ours):
                base, expert = self.of("base"), self.of(who)
                assert base is not None
                assert expert is not None
                found[who] = Difference.between(base, expert)
        return found

    @cached_property
    def clash(self) -> str:
        """The first place where two experts' new tokens meet, in words; empty where there is none."""
        by_token: dict[str, tuple[str, int]] = {}
        by_number: dict[int, tuple[str, str]] = {}
        for who, difference in self.differences.items():
            for token, number in difference.added:
                other, at = by_token.setdefault(token, (who, number))
                if at != number:
                    return f"the new token {token!r} is {at} in {other} and {number} in {who}"
                other, there = by_number.setdefault(number, (who, token))
                if there != token:
                    return f"the new token {number} is {there!r} in {other} and {token!r} in {who}"
        return ""

    @property
    def agree(self) -> bool:
        """Whether equal numbers mean equal tokens in all models, as far as they have them."""
        return not self.clash and not any(entry.moved or entry.replaced for entry in self.differences.values())


def compare_tokens(checkpoints: Mapping[str, Checkpoint]) -> Tokens:
    """The numberings of a family, each read when it is first asked for; without tokenizers there is nothing to say."""
    return Tokens(checkpoints)


def align(members: Mapping[str, Member], tokens: Tokens, policy: Policy) -> dict[str, AlignedCheckpoint]:
    """Bring the experts that need it into the base's vocabulary.

    Args:
        members: "base" and the experts.
        tokens: Their numberings.
        policy: See the module's docstring.

    Returns:
        The experts whose rows are not taken as they are.

    Raises:
        ModelError: Rows mean different tokens or differ in number and the policy is ``refuse``, or what ``common``
            needs to know is not known.
    """
    base = members["base"]
    name = input_embedding(base.model)
    if name is None or name not in base.map:
        return {}
    rows = base.shapes[name][0]
    experts = [member for who, member in members.items() if who != "base" and name in member.map]
    resized = [member for member in experts if member.shapes[name][0] != rows]
    if not resized and tokens.agree:
        for who, difference in tokens.differences.items():
            log.info("The tokenizer of %s: %s. Its rows are merged like any other.", who, "; ".join(difference.parts))
        return {}
    if policy == "refuse":
        raise ModelError(_refusal(base, experts, tokens, name, rows))
    if policy == "common":
        indices = _by_token(base, experts, tokens, name, rows)
    else:
        indices = {member.who: _by_number(member.shapes[name][0], rows) for member in resized}
        if not tokens.agree:
            log.warning("%s; with vocabulary: base they are merged by number.", _what_differs(experts, tokens, {}))
    return {
        member.who: AlignedCheckpoint(
            member.checkpoint,
            base.checkpoint,
            indices[member.who],
            _disk_tensors(base, member, name),
            renumbered=_is_renumbered(tokens, member.who, policy),
        )
        for member in experts
        if member.who in indices
    }


def input_embedding(model: nn.Module) -> str | None:
    """The parameter that holds one row per token, if the model has one."""
    try:
        module = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    if not isinstance(module, nn.Embedding):
        return None
    return next((name for name, value in model.named_parameters() if value is module.weight), None)


def check_numbering(checkpoint: Checkpoint, who: str) -> None:
    """The tokenizer of a member must number tokens as the merged model's rows do.

    Raises:
        ModelError: It does not.
    """
    if isinstance(checkpoint, AlignedCheckpoint) and checkpoint.renumbered:
        raise ModelError(
            f"tokenizer is {who!r}, whose tokens are numbered otherwise than the base's, and the merge has the base's "
            "vocabulary. Set tokenizer: base, or name an expert that has the base's tokenizer."
        )


def _by_number(count: int, rows: int) -> npt.NDArray[np.int64]:
    index = np.arange(rows)
    index[count:] = -1
    return index


def _by_token(
    base: Member, experts: Sequence[Member], tokens: Tokens, name: str, rows: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Expert -> which of its rows stands for each token that all have; those whose rows are right already left out."""
    ours = tokens.of("base")
    known: dict[str, Mapping[str, int]] = {}
    for member in experts:
        theirs = tokens.of(member.who)
        if theirs is None and member.shapes[name][0] == rows:
            theirs = ours  # nothing says that it differs
        if ours is None or theirs is None:
            who = base if ours is None else member
            raise ModelError(
                f"vocabulary is 'common', which goes by token, and {who.title} has no tokenizer in its folder. Put its "
                "tokenizer's files there, or set vocabulary: base, which goes by number."
            )
        known[member.who] = theirs
    assert ours is not None, "there is at least one expert"
    shared = {
        token: number
        for token, number in ours.items()
        if number < rows and all(known[member.who].get(token, np.inf) < member.shapes[name][0] for member in experts)
    }
    numbers = np.fromiter(shared.values(), np.int64, len(shared))
    indices = {}
    for member in experts:
        theirs = known[member.who]
        own = np.fromiter((theirs[token] for token in shared), np.int64, len(shared))
        whole = len(shared) == len(ours) and member.shapes[name][0] == rows
        if whole and np.array_equal(own, numbers):
            continue  # rows beyond the last token are merged by number, as they are without a policy
        indices[member.who] = np.full(rows, -1, np.int64)
        indices[member.who][numbers] = own
    return indices


def _is_renumbered(tokens: Tokens, who: str, policy: Policy) -> bool:
    difference = tokens.differences.get(who)
    if difference is None:
        return False
    return bool(difference.added) or (policy == "common" and bool(difference.moved or difference.replaced))


def _disk_tensors(base: Member, expert: Member, name: str) -> dict[str, str]:
    """The expert's disk tensors with one row per token (embedding, head, its bias) -> the base's of that parameter.

    Raises:
        ModelError: The base has no such tensor, or one of them is stored in another layout.
    """
    rows = expert.shapes[name][0]
    names = [name]
    try:
        head = expert.model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        head = None
    for value in () if head is None else head.parameters(recurse=False):
        owner = next((key for key, other in expert.model.named_parameters() if other is value), None)
        if owner is not None and owner not in names and owner in expert.map and expert.shapes[owner][0] == rows:
            names.append(owner)
    found: dict[str, str] = {}
    for parameter in names:
        for member in (base, expert):
            pieces = member.map.pieces_to_read(parameter) if parameter in member.map else ()
            if len(pieces) != 1 or pieces[0].index or pieces[0].view is not None:
                raise ModelError(
                    f"{title_of(member.who, member.checkpoint)} does not store {parameter}, which has a row for every "
                    "token, as one tensor, so its rows cannot be brought into the base's vocabulary. Save it "
                    "with save_pretrained, with its language-model head."
                )
        for disk in expert.map.disk_names(parameter):
            found[disk] = base.map.disk_names(parameter)[0]
    return found


def _refusal(base: Member, experts: Sequence[Member], tokens: Tokens, name: str, rows: int) -> str:
    sizes = {member.who: member.shapes[name][0] for member in experts if member.shapes[name][0] != rows}
    disk = base.map.disk_names(name)[0]
    options = (
        "vocabulary: base merges rows by number, up to as many as the base has, and ignores experts' further ones"
        if tokens.agree
        else "vocabulary: base merges rows by number all the same"
    )
    return (
        f"The vocabularies of {base.title} and its experts differ, so rows of {disk} cannot be added up as they are: "
        f"{_what_differs(experts, tokens, sizes, rows)}. Say what is meant, in the search file or the recipe: "
        f"vocabulary: common merges the rows of tokens that all have, wherever they stand; {options}. Either way the "
        "merged model has the base's vocabulary and tokenizer."
    )


def _what_differs(experts: Sequence[Member], tokens: Tokens, sizes: Mapping[str, int], rows: int = 0) -> str:
    said = []
    for member in experts:
        parts = [f"{sizes[member.who]} rows against the base's {rows}"] if member.who in sizes else []
        if member.who in tokens.differences:
            parts += tokens.differences[member.who].parts
        elif parts:
            same = tokens.of(member.who) is not None and tokens.of("base") is not None
            parts.append(
                "the tokens are the same: padding" if same else "what they stand for is in no tokenizer's file"
            )
        if parts:
            said.append(f"{member.title} has {', '.join(parts)}")
    return "; ".join([*said, *([tokens.clash] if tokens.clash else [])])


def _counted(kind: str, shown: Sequence[str]) -> str:
    dots = ", ..." if len(shown) > _SHOWN else ""
    plural = "" if len(shown) == 1 else "s"
    return f"{len(shown)} token{plural} {kind} ({', '.join(shown[:_SHOWN])}{dots})"


def _tokenizer_folder(checkpoint: Checkpoint) -> Path:
    """Where the tokenizer that a model was trained with is: beside its adapter, if it has one there."""
    if isinstance(checkpoint, AdapterCheckpoint) and tokens_digest(checkpoint.adapter_folder) is not None:
        return checkpoint.adapter_folder
    return checkpoint.folder
