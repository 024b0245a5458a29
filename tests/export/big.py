"""Llama checkpoints of any size whose values cost nothing to make, for tests of memory and of being killed.

recipe = save_big(tmp_path, megabytes=64, experts=2)         # a short recipe over a base and experts on disk
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN = 256
LAYERS = 4


def save_big(folder: Path, *, megabytes: int, experts: int) -> Path:
    """Save a bf16 base and experts of about so many megabytes each; the path of a recipe that merges them.

    The embeddings are made large enough, so that the largest parameter is a third of the model. All experts but two
    are links to the first two.
    """
    layer = HIDDEN * (4 * HIDDEN + 3 * 4 * HIDDEN)
    vocabulary = (megabytes * 10**6 // 2 - LAYERS * layer) // (2 * HIDDEN)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in LlamaForCausalLM(config).named_parameters()}
    for value, name in enumerate(("base", "expert-0", "expert-1")):
        config.save_pretrained(folder / name)
        tensors = {
            key: torch.full(shape, index + value / 8, dtype=torch.bfloat16)
            for index, (key, shape) in enumerate(shapes.items())
        }
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    for number in range(2, experts):
        (folder / f"expert-{number}").symlink_to(folder / f"expert-{number % 2}")
    names = [f"expert-{number}" for number in range(experts)]
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "optmerge_recipe: 1\nbase: base\n"
        f"experts: {{{', '.join(f'{name}: {name}' for name in names)}}}\n"
        f"coefficients: {{{', '.join(f'{name}: 0.25' for name in names)}}}\n"
    )
    return recipe
