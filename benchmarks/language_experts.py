"""LoRA experts of the language example, trained on its texts: one short run per domain on two cores.

    train_expert(zoo / "base", zoo / "data" / "code.train.jsonl", zoo / "code", LoraRecipe())

In: a causal language model's folder and a file of texts. Out: a PEFT adapter's folder, which appears when training has
ended. The order of the texts and the adapter's first values come from the recipe's seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from optmerge.atomic import atomic_directory

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraRecipe:
    """How an expert is trained: AdamW with a linear decay, next-token cross-entropy over whole windows."""

    rank: int = 16
    steps: int = 48
    batch: int = 4
    tokens: int = 128
    learning_rate: float = 1e-3
    seed: int = 0


def read_texts(path: Path) -> list[str]:
    """The texts of a jsonl file."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def train_expert(
    base: Path,
    texts: Path,
    folder: Path,
    recipe: LoraRecipe,
    *,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train one adapter and save it, whole or not at all.

    Args:
        base: Folder of the base model and its tokenizer.
        texts: What to train on.
        folder: Where the adapter is saved.
        recipe: The training's settings.
        progress: Told the step and its loss in nats per token.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=list(LAYERS), bias="none", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):  # peft draws the first values from the global generator
        torch.default_generator.manual_seed(recipe.seed)
        adapted = get_peft_model(model, config)
    adapted.train()  # no part of it has dropout
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / recipe.steps)
    for step, batch in enumerate(windows(tokenizer, read_texts(texts), recipe)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = adapted(input_ids=batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(step + 1, float(loss.detach()))
    with atomic_directory(folder) as temporary:
        adapted.save_pretrained(temporary)


def windows(
    tokenizer: Callable[..., dict[str, list[list[int]]]], texts: list[str], recipe: LoraRecipe
) -> Iterator[Tensor]:
    """Batches int64[batch, tokens] of the texts in a shuffled order, one after the other; used again where too few."""
    generator = torch.Generator().manual_seed(recipe.seed)
    needed = recipe.batch * recipe.tokens
    stream: list[int] = []
    for _ in range(recipe.steps):
        while len(stream) < needed:
            order = torch.randperm(len(texts), generator=generator)[: 16 * recipe.batch].tolist()
            for ids in tokenizer([texts[place] + "\n" for place in order])["input_ids"]:
                stream += ids
        yield torch.tensor(stream[:needed]).view(recipe.batch, recipe.tokens)
        stream = stream[needed:]
