"""What a machine has for optmerge, and what it lacks for which feature.

found = examine()
found.devices, found.features["peft"].missing
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.models.cache import CacheEntry, cache_dir, cache_entries

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_DEVELOPMENT = "dev"


@dataclass(frozen=True, slots=True)
class Feature:
    """An extra of the package.

    Attributes:
        missing: Its packages that are not installed, or too old.
        command: Installs them.
    """

    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        versions: Package -> its version, Python first.
        features: Extra -> what it lacks.
        devices: What torch can compute on, the one that ``device: auto`` takes first.
        kernels: What merges are computed with on that one.
        memory: Bytes: of the machine, and of it what is free now.
        disk: Folder -> bytes that are free there.
        caches: What is cached, and how much.
        cache: Where.
        accounts: Service -> whether this user is signed in, as far as that can be told without asking it.
        advice: What to do about what was found, if anything.
    """

    versions: Mapping[str, str]
    features: Mapping[str, Feature]
    devices: tuple[str, ...]
    kernels: str
    memory: tuple[int, int]
    disk: Mapping[str, int]
    caches: tuple[CacheEntry, ...]
    cache: Path
    accounts: Mapping[str, bool]
    advice: tuple[str, ...]


def examine() -> Examination:
    """Look at this machine. Nothing is asked of the network, and nothing is written but the compiled kernels."""
    import psutil

    from optmerge.merging import kernels
    from optmerge.models.device import pick_device

    needed, extras = requirements()
    chosen = pick_device("auto")
    memory = psutil.virtual_memory()
    kind = kernels.kind(chosen)
    versions = {"python": platform.python_version(), "optmerge": version("optmerge")}
    return Examination(
        versions | {each.name: found for each in needed if (found := _version(each.name)) is not None},
        {name: _feature(name, packages) for name, packages in extras.items() if name != _DEVELOPMENT},
        (str(chosen), *(["cpu"] if chosen.type != "cpu" else [])),
        kind,
        (memory.total, memory.available),
        {str(folder): shutil.disk_usage(_there(folder)).free for folder in (Path.cwd(), cache_dir())},
        tuple(cache_entries()),
        cache_dir(),
        {"Hugging Face": _hugging_face(), "Weights & Biases": _weights_and_biases()},
        tuple(_advice(kind, chosen.type)),
    )


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """The packages that optmerge always needs, and those of every extra, from its own metadata."""
    from packaging.requirements import Requirement

    known = [Requirement(line) for line in requires("optmerge") or ()]
    usual = [each for each in known if each.marker is None or each.marker.evaluate({"extra": ""})]
    return usual, {
        extra: [each for each in known if each not in usual and each.marker and each.marker.evaluate({"extra": extra})]
        for extra in metadata("optmerge").get_all("Provides-Extra") or ()
    }


def _feature(name: str, packages: list[Requirement]) -> Feature:
    missing = tuple(
        str(each).partition(";")[0].strip()
        for each in packages
        if (found := _version(each.name)) is None or not each.specifier.contains(found, prereleases=True)
    )
    return Feature(missing, f"pip install 'optmerge[{name}]'")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _there(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def _hugging_face() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _weights_and_biases() -> bool:
    """A key in the environment, or in the file where ``wandb login`` leaves one."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "WANDB_API_KEY" in os.environ or "wandb" in netrc.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _advice(kernels: str, device: str) -> list[str]:
    told = []
    if device == "cpu":
        told.append(
            "torch finds no accelerator, so everything runs on the CPU. If this machine has one, install the build of "
            "torch for it (https://pytorch.org/get-started/locally)."
        )
    if kernels == "torch" and device != "mps":
        lacking = "a C compiler (gcc or clang)" if device == "cpu" else "Triton and a C compiler"
        told.append(f"Merges are computed by torch's operations, which is slower; with {lacking} they are compiled.")
    return told
