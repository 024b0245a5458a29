"""The streamed writer's files are what safetensors itself reads, sharded or not."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from optmerge.export.merged import stream_tensor
from optmerge.export.safetensors_writer import ShardedWriter, TensorSpec, index_json, plan_shards

TENSORS = {
    "counter": torch.arange(3),
    "matrix": torch.linspace(-1, 1, 20).reshape(4, 5).bfloat16(),
    "scalar": torch.tensor(2.0).bfloat16(),
    "nothing": torch.empty(0, 3).bfloat16(),
    "transposed": torch.linspace(0, 1, 12).reshape(3, 4).T.bfloat16(),
}
SPECS = [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()]


@pytest.mark.parametrize(("shard_bytes", "files"), [(10**9, 1), (64, 2), (1, 5)])
def test_safetensors_reads_what_was_written(shard_bytes: int, files: int, tmp_path: Path) -> None:
    wrote: list[int] = []
    with ShardedWriter(tmp_path, SPECS, shard_bytes=shard_bytes, wrote=wrote.append) as writer:
        for name, tensor in TENSORS.items():
            writer.begin(name)
            stream_tensor(tensor, writer)
    found: dict[str, torch.Tensor] = {}
    paths = sorted(tmp_path.glob("*.safetensors"))
    for path in paths:
        found |= load_file(path)
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        assert length % 8 == 0
    assert len(paths) == files
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert sum(wrote) == sum(spec.nbytes for spec in SPECS)
    index = json.loads(index_json(writer.shards))
    assert index["metadata"] == {"total_size": sum(wrote)}
    assert {name: load_file(tmp_path / file)[name].shape for name, file in index["weight_map"].items()} == {
        name: tensor.shape for name, tensor in TENSORS.items()
    }


def test_a_checkpoint_without_tensors_is_a_file_too(tmp_path: Path) -> None:
    with ShardedWriter(tmp_path, []):
        pass
    assert load_file(tmp_path / "model.safetensors") == {}


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    with ShardedWriter(tmp_path, SPECS, shard_bytes=64, hashed=True) as writer:
        for name, tensor in TENSORS.items():
            writer.begin(name)
            stream_tensor(tensor, writer)
    assert len(writer.digests) == 2
    for file, digest in writer.digests.items():
        assert digest == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()


def test_a_tensor_comes_in_chunks_and_is_cast(tmp_path: Path) -> None:
    values = torch.linspace(-3, 3, 50)
    with ShardedWriter(tmp_path, [TensorSpec("w", (5, 10), torch.bfloat16)]) as writer:
        writer.begin("w")
        for part in values.split(7):
            writer.reserve(part.numel()).copy_(part)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], values.view(5, 10).bfloat16())


@pytest.mark.parametrize("count", [10, 3])
def test_what_was_declared_must_be_written(count: int, tmp_path: Path) -> None:
    specs = [TensorSpec("w", (10,), torch.float32), TensorSpec("v", (), torch.float32)]

    def write() -> None:
        with ShardedWriter(tmp_path, specs) as writer:
            writer.begin("w")
            writer.reserve(count).fill_(0)

    with pytest.raises(AssertionError, match="were not written"):
        write()


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 200))
def test_shards_keep_order_and_size(lengths: list[int], shard_bytes: int) -> None:
    specs = [TensorSpec(f"t{index}", (length,), torch.float32) for index, length in enumerate(lengths)]
    shards = plan_shards(specs, shard_bytes)
    assert [spec for shard in shards for spec in shard] == specs
    for shard in shards:
        full = [spec for spec in shard if spec.nbytes]
        assert sum(spec.nbytes for spec in full) <= shard_bytes or len(full) == 1
