"""Model references: what a user writes for a model, and the folder that it stands for.

Three forms are known:

zoo/base                            a folder
org/name   org/name@revision        a model on the Hugging Face Hub
zoo/base+zoo/adapter                a model with an adapter on it; either side in either form

reference = ModelReference.parse("zoo/base", relative_to=Path("experiments"))
folder = resolve(reference).folder
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from optmerge.errors import ModelError, did_you_mean

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.codes", "README.md")  # that states the licence
_UNWANTED = ("onnx/*", "openvino/*", "original/*", "consolidated*")
_TEMPLATES = "additional_chat_templates/*.jinja"
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class ModelReference:
    """One parsed reference.

    Attributes:
        text: The reference with its folders made absolute; parsing it again gives the same from anywhere.
        source: An absolute folder, or an id on the Hub.
        revision: Branch, tag or commit on the Hub; None means its default branch.
        adapter: What is merged onto it first, if anything.
        local: Whether ``source`` is a folder.
    """

    text: str
    source: str
    revision: str | None = None
    adapter: ModelReference | None = None
    local: bool = True

    @classmethod
    def parse(cls, text: str, *, relative_to: Path) -> ModelReference:
        """Understand a reference without touching the network.

        A text that names an existing folder is that folder; ``+`` and ``@`` count only otherwise.

        Raises:
            ModelError: It can be neither a folder nor an id on the Hub.
        """
        text = text.strip()
        if not _is_folder(text, relative_to) and "+" in text:
            base, adapter = _split_adapter(text, relative_to)
            parsed, extra = _parse_one(base, relative_to), _parse_one(adapter, relative_to)
            return cls(f"{parsed.text}+{extra.text}", parsed.source, parsed.revision, extra, parsed.local)
        return _parse_one(text, relative_to)


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a reference's files are.

    Attributes:
        folder: Holds config, weights and tokenizer.
        revision: Commit on the Hub; None for a folder.
        adapter_folder: Holds the adapter, if the reference names one.
    """

    folder: Path
    revision: str | None
    adapter_folder: Path | None = None


def resolve(reference: ModelReference, *, allow_pickle: bool = False) -> Resolved:
    """Find a reference's folder, downloading from the Hub what its cache lacks.

    Raises:
        ModelError: The folder does not exist, or the Hub has no such model, keeps it gated, or cannot be reached.
    """
    folder, revision = _locate(reference, allow_pickle=allow_pickle)
    if reference.adapter is None:
        return Resolved(folder, revision)
    adapter_folder, adapter_revision = _locate(reference.adapter, allow_pickle=allow_pickle)
    revisions = [text for text in (revision, adapter_revision) if text]
    return Resolved(folder, "+".join(revisions) or None, adapter_folder)


def model_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files of a folder that opening a model, an adapter, their tokenizer or image processor may read.

    Args:
        folder: Of the model or adapter.
        allow_pickle: Take pickled weights where there are no safetensors.
    """
    found = [path for pattern in (*_WANTED, _TEMPLATES) for path in folder.glob(pattern) if path.is_file()]
    found = [path for path in found if not any(path.match(pattern) for pattern in _UNWANTED)]
    if allow_pickle and not any(path.suffix == ".safetensors" for path in found):
        found += [path for pattern in _PICKLES for path in folder.glob(pattern)]
    return sorted(set(found))


def _is_folder(text: str, relative_to: Path) -> bool:
    return bool(text) and _absolute(text, relative_to).is_dir()


def _absolute(text: str, relative_to: Path) -> Path:
    return Path(os.path.abspath(relative_to / Path(text).expanduser()))


def _split_adapter(text: str, relative_to: Path) -> tuple[str, str]:
    """The two sides of a plus sign; the sign between two existing folders if there are several."""
    places = [place for place, letter in enumerate(text) if letter == "+"]
    splits = [(text[:place], text[place + 1 :]) for place in places]
    for base, adapter in splits:
        if _is_folder(base, relative_to) and _is_folder(adapter, relative_to):
            return base, adapter
    if len(splits) > 1:
        raise ModelError(
            f"The model {text!r} has {len(splits)} plus signs; expected model+adapter with one adapter. "
            "Merge the adapters one after the other, saving the model in between."
        )
    return splits[0]


def _parse_one(text: str, relative_to: Path) -> ModelReference:
    if _is_folder(text, relative_to):
        folder = str(_absolute(text, relative_to))
        return ModelReference(folder, folder)
    name, _, revision = text.partition("@")
    looks_local = text.startswith(("/", ".", "~")) or "\\" in text or Path(text).is_absolute()
    if looks_local or not _HUB_ID.fullmatch(name) or ("@" in text and not revision):
        path = _absolute(text, relative_to) if text else relative_to
        if path.is_file():
            raise ModelError(f"The model {text!r} is a file; name the folder that holds it, {path.parent}.")
        raise ModelError(
            f"The model {text!r} was not found: there is no folder {path}, and it is no id on the Hugging Face Hub "
            f"(owner/name or owner/name@revision).{did_you_mean(path.name, _siblings(path))}"
        )
    missing = _absolute(text, relative_to)
    if missing.is_file():
        raise ModelError(f"The model {text!r} is a file; name the folder that holds it, {missing.parent}.")
    return ModelReference(text, name, revision or None, local=False)


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _locate(reference: ModelReference, *, allow_pickle: bool) -> tuple[Path, str | None]:
    if reference.local:
        folder = Path(reference.source)
        if not folder.is_dir():
            near = did_you_mean(folder.name, _siblings(folder))
            raise ModelError(f"The model folder {folder} no longer exists.{near}")
        return folder, None
    folder = _download(reference, _WANTED)
    if allow_pickle and not any(folder.glob("*.safetensors")):
        folder = _download(reference, (*_WANTED, *_PICKLES))
    return folder, folder.name  # a snapshot's folder is named after its commit


def _download(reference: ModelReference, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    shown = reference.text
    page = f"https://huggingface.co/{reference.source}"
    local = f"If you meant a folder: {reference.source} is none (relative paths start at the file that names them)."
    try:
        return Path(
            huggingface_hub.snapshot_download(
                reference.source,
                revision=reference.revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(_UNWANTED),
            )
        )
    except errors.GatedRepoError:
        raise ModelError(
            f"The model {shown} is gated. Ask for access on {page}, then log in with `hf auth login` "
            "(or set HF_TOKEN) and try again."
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            f"The model {reference.source} has no revision {reference.revision!r} on the Hub. Its branches, tags and "
            f"commits are listed on {page}/tree/main."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"The Hugging Face Hub has no model {shown}, or it is private and you are not logged in (`hf auth login`). "
            f"{local}"
        ) from None
    except errors.HFValidationError:
        raise ModelError(f"{shown!r} is not an id that the Hugging Face Hub could have (owner/name). {local}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        raise ModelError(
            f"The model {shown} is not in the Hugging Face cache, and the Hub cannot be reached (no network, or "
            f"HF_HUB_OFFLINE is set). Go online, download it first with `hf download {reference.source}`, or name a "
            f"folder. {local}"
        ) from None
    except errors.HfHubHTTPError as problem:
        first = str(problem).strip().splitlines()[0]
        raise ModelError(f"The Hugging Face Hub refused to give the model {shown}: {first}. Try again later.") from None
