"""Where an adapter acts: what does not fit the base is refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optmerge.errors import ModelError
from optmerge.models.checkpoint import open_checkpoint
from tests.models.peft_adapters import edit_config, train
from tests.tiny import TinyFamily, make_model

Tiny = Callable[[str], TinyFamily]


def _changed(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Rewrite the adapter's file with some tensors replaced, added or (None) removed."""
    path = folder / "adapter_model.safetensors"
    tensors = {**{name: value.clone() for name, value in load_file(path).items()}, **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"layers.0.self_attn.q_proj.lora_A.weight": None},
            "half an update of model.layers.0.self_attn.q_proj: lora_A",
        ),
        (
            {"layers.0.self_attn.q_proj.lora_A.weight": torch.ones(3, 99)},
            r"does not fit .*\[16, 3\] and \[3, 99\].*q_proj.weight is \[16, 16\]",
        ),
        (
            {"layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 16)},
            r"does not fit .*\[16, 3\] and \[2, 16\]",
        ),
        (
            {
                "layers.9.self_attn.q_proj.lora_A.weight": torch.ones(3, 16),
                "layers.9.self_attn.q_proj.lora_B.weight": torch.ones(16, 3),
            },
            r"changes model.layers.9.self_attn.q_proj.weight, which is unknown",
        ),
        ({"layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(3)}, "which plain LoRA does not have"),
        (
            {"norm.lora_A.weight": torch.ones(3, 16), "norm.lora_B.weight": torch.ones(16, 3)},
            r"its factors for model.norm .* is \[16\]",
        ),
    ],
)
def test_half_foreign_and_misfitting_updates(
    tiny: Tiny, tmp_path: Path, changes: dict[str, torch.Tensor | None], said: str
) -> None:
    train(make_model("llama"), tmp_path / "adapter", target_modules=["q_proj"], task_type="CAUSAL_LM")
    _changed(tmp_path / "adapter", {f"base_model.model.model.{name}": value for name, value in changes.items()})
    with pytest.raises(ModelError, match=said):
        open_checkpoint(f"{tiny('llama').base}+{tmp_path / 'adapter'}")


def test_a_tied_head_has_no_update_of_its_own(tiny: Tiny, tmp_path: Path) -> None:
    train(make_model("llama-tied"), tmp_path / "adapter", target_modules=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match=r"changes lm_head.weight, which is tied to model.embed_tokens.weight.*=False"):
        open_checkpoint(f"{tiny('llama-tied').base}+{tmp_path / 'adapter'}")


def test_both_copies_of_a_tied_embedding_are_changed(tiny: Tiny, tmp_path: Path) -> None:
    base = tmp_path / "base"
    make_model("llama-tied").save_pretrained(base)
    path = base / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    expected = train(
        make_model("llama-tied"), tmp_path / "adapter", target_modules=["embed_tokens"], task_type="CAUSAL_LM"
    )
    checkpoint = open_checkpoint(f"{base}+{tmp_path / 'adapter'}")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(checkpoint.read(name), expected["model.embed_tokens.weight"])


def _fused(tmp_path: Path) -> Path:
    train(
        make_model("mixtral"),
        tmp_path / "adapter",
        task_type="CAUSAL_LM",
        target_modules=[],
        target_parameters=["mlp.experts.down_proj"],
    )
    return tmp_path / "adapter"


def test_factors_that_do_not_fit_fused_experts(tiny: Tiny, tmp_path: Path) -> None:
    """Each of the three experts has 24 inputs; one rank too many cannot be shared out among them."""
    folder = _fused(tmp_path)
    key = "base_model.model.model.layers.0.mlp.experts"
    _changed(folder, {f"{key}.lora_A.weight": torch.ones(10, 24), f"{key}.lora_B.weight": torch.ones(16, 10)})
    with pytest.raises(ModelError, match=r"mlp.experts are \[16, 10\] and \[10, 24\].*down_proj is \[3, 16, 24\]"):
        open_checkpoint(f"{tiny('mixtral').base}+{folder}")


def test_more_wrappers_than_targeted_parameters(tiny: Tiny, tmp_path: Path) -> None:
    folder = _fused(tmp_path)
    key = "base_model.model.model.layers.0.mlp.experts.base_layer"
    _changed(folder, {f"{key}.lora_A.weight": torch.ones(9, 16), f"{key}.lora_B.weight": torch.ones(48, 9)})
    with pytest.raises(
        ModelError, match=r"factors for 2 parameters of model.layers.0.mlp.experts.*name down_proj there"
    ):
        open_checkpoint(f"{tiny('mixtral').base}+{folder}")


def test_target_parameters_that_the_file_was_not_made_for(tiny: Tiny, tmp_path: Path) -> None:
    folder = _fused(tmp_path)
    edit_config(folder, target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ModelError, match=r"does not fit .*experts.gate_up_proj is \[3, 48, 16\]"):
        open_checkpoint(f"{tiny('mixtral').base}+{folder}")


def test_a_replaced_module_that_is_fused_on_load(tiny: Tiny, tmp_path: Path) -> None:
    folder = _fused(tmp_path)
    _changed(folder, {"base_model.model.model.layers.0.mlp.experts.gate_up_proj": torch.ones(3, 48, 16)})
    with pytest.raises(ModelError, match=r"replaces model.layers.0.mlp.experts.gate_up_proj.*6 tensors.*converted"):
        open_checkpoint(f"{tiny('mixtral').base}+{folder}")
