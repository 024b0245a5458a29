"""Which token has which number: read from a tokenizer's files, without making a tokenizer where that can be avoided.

digest = tokens_digest(folder)       # equal digests: equal numbering; None where there is no tokenizer
ids = read_tokens(folder)            # {"the": 262, "<|im_start|>": 128002, ...}
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from optmerge.models.cache import file_sha256, recall, remember

log = logging.getLogger(__name__)

FAST = "tokenizer.json"
SLOW = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "added_tokens.json")
_MORE = ("tokenizer_config.json", "special_tokens_map.json")  # may add tokens to those of a slow tokenizer's files


def tokens_digest(folder: Path) -> str | None:
    """A hash of the numbering, remembered for as long as the files stay; None where it cannot be read."""
    files = _files(folder)
    if not files:
        return None
    key = hashlib.sha256(json.dumps([[file.name, file_sha256(file)] for file in files]).encode()).hexdigest()[:32]
    known = recall("tokens", key)
    if known is None:
        ids = read_tokens(folder)
        if ids is None:
            return None
        ordered = sorted(ids.items(), key=lambda item: (item[1], item[0]))
        known = {"sha256": hashlib.sha256(json.dumps(ordered).encode()).hexdigest()}
        remember("tokens", key, known)
    return str(known["sha256"])


def read_tokens(folder: Path) -> dict[str, int] | None:
    """Token -> number; None where the folder has no tokenizer, or one that cannot be read, of which the log tells."""
    files = _files(folder)
    if not files:
        return None
    try:
        return _from_fast(files[0]) if files[0].name == FAST else _from_slow(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as problem:
        first = " ".join(str(problem).split())[:200]
        log.warning("The tokens of %s cannot be read, so they are not compared: %s", folder, first)
        return None


def _files(folder: Path) -> list[Path]:
    """What the numbering is read from."""
    if (folder / FAST).is_file():
        return [folder / FAST]
    found = [folder / name for name in SLOW if (folder / name).is_file()]
    return found and [*found, *(folder / name for name in _MORE if (folder / name).is_file())]


def _from_fast(path: Path) -> dict[str, int]:
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary: Any = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        ids = {str(token): int(number) for token, number in vocabulary.items()}
    else:  # a unigram model lists [token, score]
        ids = {str(entry[0]): number for number, entry in enumerate(vocabulary)}
    return ids | {str(entry["content"]): int(entry["id"]) for entry in content.get("added_tokens") or ()}


def _from_slow(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return {str(token): int(number) for token, number in tokenizer.get_vocab().items()}
