"""Reading ahead finds what hashing and scanning find, in one pass, and stops when nobody waits."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optmerge.errors import ModelError
from optmerge.models import ahead
from optmerge.models.ahead import read_ahead
from optmerge.models.cache import recall
from optmerge.models.checkpoint import FolderCheckpoint, open_checkpoint
from optmerge.models.family import open_family
from optmerge.models.mapped import SafetensorsFile
from optmerge.models.values import find_nonfinite, is_finite
from tests.tiny import make_model, save, save_family


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ahead, "_CHUNK", 64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_are_seen_by_their_exponent(dtype: torch.dtype, bad: float, tmp_path: Path) -> None:
    limits = torch.finfo(dtype)
    good = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny] * 10, dtype=torch.float64)
    spoilt = good.clone()
    spoilt[-1] = bad
    tensors = {"good": good.to(dtype), "spoilt": spoilt.to(dtype), "none": torch.empty(0, 3).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    found: set[tuple[Path, str]] = set()
    ahead._digest_and_scan(SafetensorsFile(tmp_path / "x.safetensors"), found, threading.Event())
    assert not is_finite(tensors["spoilt"])
    assert found == {(tmp_path / "x.safetensors", "spoilt")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["10GB", "5KB"])
def test_one_pass_finds_hash_and_bad_values(dtype: torch.dtype, shard: str, tmp_path: Path) -> None:
    model = make_model("llama", dtype=dtype)
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] = float("nan")
        model.get_parameter("lm_head.weight")[-1, -1] = float("inf")
    folder = save(model, tmp_path / "m", "llama", max_shard_size=shard)
    plain = open_checkpoint(str(folder)).sha256()
    checkpoint = open_checkpoint(str(folder))
    assert isinstance(checkpoint, FolderCheckpoint)
    with read_ahead([checkpoint]) as wait:
        wait()
    for path in checkpoint.sources:
        assert checkpoint._digests[path] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.sha256() == plain
    known = recall("values", plain)
    assert known is not None
    assert sorted(known["nonfinite"]) == ["lm_head.weight", "model.norm.weight"]
    assert find_nonfinite(checkpoint, ["model.norm.weight"]) == ["model.norm.weight"]


def test_a_stopped_pass_leaves_no_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(save(make_model("llama"), tmp_path / "m", "llama")))
    assert isinstance(checkpoint, FolderCheckpoint)
    begun, leave = threading.Event(), threading.Event()

    def slow(*_: object) -> bool:
        begun.set()
        assert leave.wait(30)
        return True

    monkeypatch.setattr(ahead, "_is_finite", slow)
    with read_ahead([checkpoint]):
        assert begun.wait(30)
        threading.Timer(0.05, leave.set).start()
    assert not checkpoint._digests
    assert recall("values", checkpoint.sha256()) is None


def test_a_family_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = save_family("llama", tmp_path)
    experts = {name: str(path) for name, path in tiny.experts.items()}
    monkeypatch.setattr("optmerge.models.values._scan", lambda *_: pytest.fail("a second pass"))
    family = open_family(str(tiny.base), experts, relative_to=tmp_path)
    assert len({family.base.sha256(), *(expert.sha256() for expert in family.experts.values())}) == 3


def test_a_header_that_does_not_fit_is_told_before_the_values(tmp_path: Path) -> None:
    tiny = save_family("llama", tmp_path)
    other = save(make_model("llama", hidden_size=32), tmp_path / "other", "llama")
    with pytest.raises(ModelError, match="does not fit"):
        open_family(str(tiny.base), {"other": str(other)}, relative_to=tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("optmerge-ahead")]
