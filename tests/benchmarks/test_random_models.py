"""Random checkpoints are what transformers and peft read, the same every time, and experts are near their base."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
import transformers

from benchmarks import random_models
from benchmarks.random_models import MODELS, random_tensor, shapes_of, write_adapter, write_family

SIZES = {"llama-110m": 110e6, "llama-240m": 242e6, "llama-1b": 1.236e9, "llama-3b": 3.213e9, "clip-b32": 87.5e6}


@pytest.mark.parametrize("model", SIZES)
def test_models_are_as_large_as_they_say(model: str) -> None:
    count = sum(torch.Size(shape).numel() for shape in shapes_of(model).values())
    assert count == pytest.approx(SIZES[model], rel=0.01)


@pytest.mark.parametrize("model", ["llama-tiny", "clip-tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_reads_what_was_written(model: str, dtype: torch.dtype, tmp_path: Path) -> None:
    family = write_family(tmp_path, model, experts=2, dtype=dtype)
    for expert, folder in {None: family.base, 0: family.experts["e0"], 1: family.experts["e1"]}.items():
        loaded, told = getattr(transformers, MODELS[model][1]).from_pretrained(folder, output_loading_info=True)
        assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        for name, parameter in loaded.named_parameters():
            expected = random_tensor(name, tuple(parameter.shape), dtype=dtype, expert=expert)
            assert torch.equal(parameter.data, expected), name


def test_experts_are_near_the_base_and_differ_from_each_other() -> None:
    values = [random_tensor("layer.weight", (256, 512), dtype=torch.float32, expert=who) for who in (None, 0, 1)]
    deltas = [value - values[0] for value in values[1:]]
    for delta in deltas:
        assert float(delta.std() / values[0].std()) == pytest.approx(random_models.NOISE, rel=0.05)
    cosine = torch.nn.functional.cosine_similarity(*(delta.flatten() for delta in deltas), dim=0)
    assert abs(float(cosine)) < 0.02


def test_a_matrix_larger_than_the_block_has_no_two_rows_alike() -> None:
    value = random_tensor("wide.weight", (9000, 1024), dtype=torch.float32)
    assert value.numel() > 2 * random_models.BLOCK
    assert len(torch.unique(value[:, :2], dim=0)) == len(value)


def test_many_shards_hold_every_tensor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_models, "SHARD", 300_000)
    family = write_family(tmp_path, "llama-tiny", experts=0, dtype=torch.float32)
    assert len(list(family.base.glob("model-*.safetensors"))) > 3
    _, told = transformers.AutoModelForCausalLM.from_pretrained(family.base, output_loading_info=True)
    assert not told["missing_keys"]


def test_peft_reads_the_adapter_and_it_changes_every_linear_layer(tmp_path: Path) -> None:
    family = write_family(tmp_path, "llama-tiny", experts=0, dtype=torch.float32)
    write_adapter(tmp_path / "adapter", family.base, "llama-tiny", rank=4, seed=1)
    base = transformers.AutoModelForCausalLM.from_pretrained(family.base)
    before = {name: value.clone() for name, value in base.named_parameters()}
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    changed = {name for name, value in merged.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
