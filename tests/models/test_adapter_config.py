"""An adapter's folder: what is not plain LoRA is refused by name, and so is a file that cannot be read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optmerge.errors import MissingExtraError, ModelError
from optmerge.models.adapter_config import read_peft_config, scaling_of
from optmerge.models.checkpoint import open_checkpoint
from tests.models.peft_adapters import edit_config, peft, train
from tests.tiny import TinyFamily, make_model

Tiny = Callable[[str], TinyFamily]


@pytest.fixture
def pair(tiny: Tiny, tmp_path: Path) -> tuple[str, Path]:
    """A reference to a Llama with an adapter, and the adapter's folder."""
    train(make_model("llama"), tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    return f"{tiny('llama').base}+{tmp_path / 'adapter'}", tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "is DoRA"),
        ({"peft_type": "LOHA"}, "of the type LOHA"),
        ({"peft_type": "PROMPT_TUNING"}, "of the type PROMPT_TUNING"),
        ({"init_lora_weights": "pissa"}, "started with pissa"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"lora_bias": True, "bias": "none"}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
    ],
)
def test_other_kinds_are_refused_by_name(pair: tuple[str, Path], changes: dict[str, object], said: str) -> None:
    edit_config(pair[1], **changes)
    with pytest.raises(ModelError, match=rf"{said}.*only plain LoRA.*merge_and_unload"):
        open_checkpoint(pair[0])


def test_truncated_pickled_and_no_adapter(pair: tuple[str, Path], tiny: Tiny) -> None:
    reference, folder = pair
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-4])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is truncated"):
        open_checkpoint(reference)
    path.write_bytes(raw)
    tensors = load_file(path)
    expected = open_checkpoint(reference).read("model.layers.0.self_attn.q_proj.weight")
    path.unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="--allow-pickle"):
        open_checkpoint(reference)
    pickled = open_checkpoint(reference, allow_pickle=True)
    assert torch.equal(pickled.read("model.layers.0.self_attn.q_proj.weight"), expected)
    base = tiny("llama").base
    with pytest.raises(ModelError, match="is not an adapter"):
        open_checkpoint(f"{base}+{base}")
    with pytest.raises(ModelError, match=r"is an adapter without the model.*Write model\+adapter"):
        open_checkpoint(str(folder))


def test_a_config_that_peft_cannot_read(pair: tuple[str, Path]) -> None:
    (pair[1] / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config.json cannot be read by peft"):
        read_peft_config(pair[1])


def test_without_peft(pair: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'optmerge\[peft\]'"):
        open_checkpoint(pair[0])


def test_scaling_takes_the_first_pattern_that_ends_the_name() -> None:
    config = peft.LoraConfig(r=4, lora_alpha=8, alpha_pattern={"layers.1.q_proj": 12, "q_proj": 16})
    found = [scaling_of(config, f"model.layers.{name}", rank=4) for name in ("1.q_proj", "11.q_proj", "1.k_proj")]
    assert found == [3.0, 4.0, 2.0]
    config.use_rslora = True
    assert scaling_of(config, "model.layers.1.k_proj", rank=4) == 4.0
