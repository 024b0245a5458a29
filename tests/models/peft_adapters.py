"""Adapters made by peft on tiny models, with random factors and what peft itself merges them to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

peft = pytest.importorskip("peft")


def train(model: PreTrainedModel, folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Save an adapter with random factors; returns what peft merges it to."""
    generator = torch.Generator().manual_seed(7)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of peft about its own options
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 3, "lora_alpha": 5, **options}))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        wrapped.save_pretrained(folder)
        merged: dict[str, torch.Tensor] = wrapped.merge_and_unload().state_dict()
    return merged


def edit_config(folder: Path, **changes: object) -> None:
    """Change fields of an adapter's config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
