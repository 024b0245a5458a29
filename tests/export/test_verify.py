"""What was written is read again: any flipped byte, wrong header or odd file is told with its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optmerge.errors import RunError
from optmerge.export import CheckpointExporter
from optmerge.export import checkpoint as checkpoint_module
from optmerge.export.safetensors_writer import TensorSpec
from optmerge.export.verify import digest_of, verify
from optmerge.models.family import Family
from tests.export.families import random_recipe

GetFamily = Callable[[str], Family]
SPECS = [TensorSpec("w", (2, 3), torch.float32)]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    (tmp_path / "body").mkdir()
    save_file({"w": torch.ones(2, 3)}, tmp_path / "body" / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b"{}")
    return tmp_path, {
        name: digest_of((tmp_path / name).read_bytes()) for name in ("config.json", "body/model.safetensors")
    }


def test_what_is_as_it_was_passes(written: tuple[Path, dict[str, str]]) -> None:
    told: list[tuple[str, int, int | None]] = []
    verify(*written, {"body/model.safetensors": SPECS}, progress=lambda *facts: told.append(facts))
    assert told[-1][1] == told[-1][2] == sum(p.stat().st_size for p in written[0].rglob("*") if p.is_file())


@pytest.mark.parametrize("name", ["config.json", "body/model.safetensors"])
def test_a_flipped_bit_is_caught(written: tuple[Path, dict[str, str]], name: str) -> None:
    path = written[0] / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=f"{name} has the SHA-256"):
        verify(*written, {"body/model.safetensors": SPECS})


def test_missing_odd_and_short_files_are_caught(written: tuple[Path, dict[str, str]]) -> None:
    folder, digests = written
    shards = {"body/model.safetensors": SPECS}
    (folder / "odd").touch()
    with pytest.raises(RunError, match="odd was not written by this merge"):
        verify(folder, digests, shards)
    (folder / "odd").unlink()
    path = folder / "body" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"model.safetensors .*is truncated"):
        verify(folder, digests, shards)
    path.unlink()
    with pytest.raises(RunError, match=r"model\.safetensors is missing"):
        verify(folder, digests, shards)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("w", (3, 2), torch.float32)], "does not hold the tensor w as it was planned"),
        ([TensorSpec("w", (2, 3), torch.int32)], "does not hold the tensor w"),
        ([*SPECS, TensorSpec("v", (), torch.int32)], "does not hold the tensor v"),
        ([], "holds the tensor w, which was not planned"),
    ],
)
def test_a_header_that_was_not_planned_is_caught(
    written: tuple[Path, dict[str, str]], specs: list[TensorSpec], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        verify(*written, {"body/model.safetensors": specs})


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_verified_checkpoint_has_the_digests_of_its_files(kind: str, family: GetFamily, tmp_path: Path) -> None:
    models = family(kind)
    exporter = CheckpointExporter(shard_bytes=5000, verify=True)
    written = exporter.write(random_recipe(models), models, tmp_path / "merged")
    files = {path.relative_to(written.folder).as_posix(): path for path in written.folder.rglob("*") if path.is_file()}
    assert {name: digest_of(path.read_bytes()) for name, path in files.items()} == written.digests
    assert CheckpointExporter(shard_bytes=5000).write(random_recipe(models), models, tmp_path / "other").digests == {}


def test_a_disk_that_loses_a_bit_leaves_no_checkpoint(
    family: GetFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(folder: Path, *arguments: object, **options: object) -> None:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
        verify(folder, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint_module, "verify", damaged)
    models = family("llama")
    with pytest.raises(RunError, match=r"model\.safetensors has the SHA-256"):
        CheckpointExporter(verify=True).export(random_recipe(models), models, tmp_path / "merged")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_nothing_loads_before_it_is_on_the_disk_and_verified(
    family: GetFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Both may take minutes, in which a process is killed."""
    seen: list[str] = []

    def watched(work: Callable[..., None]) -> Callable[..., None]:
        def first(folder: Path, *arguments: object, **options: object) -> None:
            assert not list(folder.rglob("config.json"))
            assert list(folder.rglob("model.safetensors"))
            seen.append(work.__name__)
            work(folder, *arguments, **options)

        return first

    for name in ("sync_directory", "verify"):
        monkeypatch.setattr(checkpoint_module, name, watched(getattr(checkpoint_module, name)))
    written = CheckpointExporter(verify=True).write(random_recipe(family(kind)), family(kind), tmp_path / "merged")
    assert seen == ["sync_directory", "verify"]
    there = {path.relative_to(written.folder).as_posix(): path for path in written.folder.rglob("*") if path.is_file()}
    assert written.digests == {name: digest_of(path.read_bytes()) for name, path in there.items()}
    assert any(name.endswith("config.json") for name in there)
