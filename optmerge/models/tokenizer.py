"""Tokenizers of a family's members.

They are loaded from the members' folders, without running code that comes with them.

tokenizer = tokenizer_for(family, "base")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.errors import ModelError, did_you_mean
from optmerge.models.vocabulary import check_numbering

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from optmerge.models.family import Family

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def tokenizer_for(family: Family, who: str) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder of the base or of an expert.

    A language model's tokenizer without a padding token gets its end-of-text token for it; attention masks hide it.

    Raises:
        ModelError: ``who`` is neither ``"base"`` nor an expert, or has no tokenizer that transformers can load.
    """
    members = {"base": family.base, **family.experts}
    if who not in members:
        raise ModelError(
            f"There is no {who!r} to take a tokenizer from; there are {', '.join(members)}.{did_you_mean(who, members)}"
        )
    checkpoint = members[who]
    check_numbering(checkpoint, who)
    others = [name for name, member in members.items() if any((member.folder / file).exists() for file in _FILES)]
    advice = f" Set tokenizer to one that has: {', '.join(others)}." if others else " Copy the tokenizer's files there."
    if who not in others:
        raise ModelError(f"{checkpoint.reference} has no tokenizer in {checkpoint.folder}.{advice}")
    return load_tokenizer(checkpoint.folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; see `tokenizer_for`.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as problem:
        first = " ".join(str(problem).split())[:300]
        raise ModelError(f"transformers cannot load the tokenizer in {folder}: {first}") from None
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
