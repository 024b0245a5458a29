"""The scan for NaN and Inf."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optmerge.models import values
from optmerge.models.checkpoint import FolderCheckpoint, open_checkpoint
from optmerge.models.values import find_nonfinite, is_finite
from tests.tiny import make_model, save


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_value_anywhere(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bad: float) -> None:
    monkeypatch.setattr(values, "_CHUNK", 8)
    for place in (0, 7, 8, 29):
        tensor = torch.full((30,), 3.0)
        assert is_finite(tensor.to(dtype))
        tensor[place] = bad
        assert not is_finite(tensor.to(dtype).reshape(5, 6))


def test_what_has_no_nan() -> None:
    assert is_finite(torch.empty(0))
    assert is_finite(torch.tensor([1, 2]))
    assert is_finite(torch.tensor(torch.finfo(torch.float32).max))


def test_found_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] = float("nan")
        model.get_parameter("lm_head.weight")[0, 0] = float("inf")
    checkpoint = open_checkpoint(str(save(model, tmp_path / "m", "llama")))
    assert find_nonfinite(checkpoint, sorted(checkpoint.tensors)) == ["lm_head.weight", "model.norm.weight"]
    monkeypatch.setattr(FolderCheckpoint, "read", lambda *_: pytest.fail("was scanned already"))
    assert find_nonfinite(checkpoint, ["model.norm.weight", "model.embed_tokens.weight"]) == ["model.norm.weight"]
