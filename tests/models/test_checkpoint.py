"""Checkpoints: what is read, and every kind of damage that is found before anything is mapped."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optmerge.errors import ModelError
from optmerge.models.checkpoint import open_checkpoint
from optmerge.models.mapped import SafetensorsFile
from tests.tiny import TinyFamily, make_model, save, save_model

Tiny = Callable[[str], TinyFamily]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return save(make_model("llama"), tmp_path / "sharded", "llama", max_shard_size="8KB")


def test_tensors_equal_what_was_saved(tiny: Tiny) -> None:
    folder = tiny("llama").base
    checkpoint = open_checkpoint(str(folder))
    expected = load_file(folder / "model.safetensors")
    assert set(checkpoint.tensors) == set(expected)
    for name, value in expected.items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.dtype, info.nbytes) == (tuple(value.shape), value.dtype, value.nbytes)
        assert torch.equal(checkpoint.read(name), value)
    assert checkpoint.sources == (folder / "model.safetensors",)
    assert checkpoint.config().model_type == "llama"


def test_reads_are_views_of_one_map(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(str(tiny("llama").base))
    storages = {checkpoint.read(name).untyped_storage().data_ptr() for name in checkpoint.tensors}
    assert len(storages) == 1


def test_opening_maps_nothing(tiny: Tiny) -> None:
    file = SafetensorsFile(tiny("llama").base / "model.safetensors")
    assert file._bytes is None


def test_every_dtype_empty_scalar_and_misaligned(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False, True]),
        "wide": torch.ones(2, dtype=torch.float64),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name, value in tensors.items():
        assert torch.equal(file.read(name), value)
    entries = {
        "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "f": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    header = json.dumps(entries).encode()
    raw = struct.pack("<Q", len(header)) + header + b"\x07" + struct.pack("<f", 1.5)
    (tmp_path / "b.safetensors").write_bytes(raw)
    assert SafetensorsFile(tmp_path / "b.safetensors").read("f").item() == 1.5


def test_shards(sharded: Path) -> None:
    checkpoint = open_checkpoint(str(sharded))
    assert len(checkpoint.sources) > 2
    model = make_model("llama").state_dict()
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name), model[name])


def test_missing_shard(sharded: Path) -> None:
    gone = sorted(sharded.glob("model-*.safetensors"))[1]
    size = gone.stat().st_size
    gone.unlink()
    with pytest.raises(ModelError, match=rf"1 of the \d+ shards.*missing: {gone.name}.*bytes.*have [\d,]+"):
        open_checkpoint(str(sharded))
    assert size > 0


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_names_file_expected_and_found(tmp_path: Path, keep: int) -> None:
    folder = save_model("llama", tmp_path / "m")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:keep])
    found = f"{len(raw[:keep]):,}"
    expected = f"{len(raw):,}" if keep == -1 else r"at least [\d,]+"
    with pytest.raises(ModelError) as caught:
        open_checkpoint(str(folder))
    message = str(caught.value)
    assert str(path) in message
    assert "truncated" in message
    assert found in message
    if keep == -1:
        assert expected in message


def test_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError, match=f"{shard.name} is truncated"):
        open_checkpoint(str(sharded))


def test_trailing_bytes_bad_json_and_overlaps(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(4)}, path)
    raw = path.read_bytes()
    path.write_bytes(raw + b"more")
    with pytest.raises(ModelError, match="damaged"):
        SafetensorsFile(path)
    path.write_bytes(raw[:8] + b"#" + raw[9:])
    with pytest.raises(ModelError, match="not JSON"):
        SafetensorsFile(path)
    path.write_bytes(raw.replace(b"[0,16]", b"[4,16]"))
    with pytest.raises(ModelError, match="tensor x at bytes 4 to 16"):
        SafetensorsFile(path)
    path.write_bytes(raw.replace(b'"F32"', b'"F4X"'))
    with pytest.raises(ModelError, match="F4X"):
        SafetensorsFile(path)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "m")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        open_checkpoint(str(folder))


def test_index_that_lies(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = next(iter(content["weight_map"].values()))
    content["weight_map"]["model.extra.weight"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"lacks 1 tensor \(model.extra.weight\)"):
        open_checkpoint(str(sharded))
    content["weight_map"] = {"a": "../other.safetensors"}
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="not a file beside it"):
        open_checkpoint(str(sharded))


def test_pickle_is_refused_unless_allowed(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "m")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model.bin.*--allow-pickle"):
        open_checkpoint(str(folder))
    checkpoint = open_checkpoint(str(folder), allow_pickle=True)
    assert all(torch.equal(checkpoint.read(name), value) for name, value in state.items())
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(open_checkpoint(str(folder), allow_pickle=True).read("lm_head.weight"), state["lm_head.weight"])


class _Unsafe:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


def test_pickle_that_runs_code_or_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model("llama", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Unsafe()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read as PyTorch weights"):
        open_checkpoint(str(folder), allow_pickle=True)
    assert "never run" not in capsys.readouterr().out
    torch.save([1], folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not a dictionary of tensors"):
        open_checkpoint(str(folder), allow_pickle=True)
    (folder / "pytorch_model.bin").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="8 bytes"):
        open_checkpoint(str(folder), allow_pickle=True)


def test_no_weights_no_config(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(ModelError, match=r"has no weights.*weights\.gguf"):
        open_checkpoint(str(tmp_path))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no config.json"):
        open_checkpoint(str(tmp_path)).config()
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelError, match="no-such-model"):
        open_checkpoint(str(tmp_path)).config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        open_checkpoint(str(tmp_path)).config()


def test_sha256_follows_content_only(tmp_path: Path) -> None:
    one, same = save_model("llama", tmp_path / "a"), save_model("llama", tmp_path / "b")
    other = save_model("llama", tmp_path / "c", seed=1)
    digest = open_checkpoint(str(one)).sha256()
    assert len(digest) == 64
    assert open_checkpoint(str(same)).sha256() == digest
    assert open_checkpoint(str(other)).sha256() != digest
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert open_checkpoint(str(same)).sha256() == digest
    (same / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert open_checkpoint(str(same)).sha256() != digest
