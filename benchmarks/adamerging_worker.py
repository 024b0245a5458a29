"""FusionBench's side of `time_to_quality`: its layer-wise AdaMerging at its published settings, some steps at a time.

Run in FusionBench's environment; it answers "coefficients", and "advance" with so many steps more. A step is the body
of the loop in fusion_bench/method/adamerging/layer_wise_adamerging.py with its own merged model and entropy, and the
settings of its CLIP recipe: Adam at 1e-3, coefficients from 0.3 that nothing clamps, 16 examples a task. Each
task keeps its expert's head, or (``--heads merged``) the head is merged like any tensor.

Language models are given the loss of FusionBench's AdaMerging for Llamas, cross-entropy, because token entropy is least
for a model that repeats itself.

The examples are those that `adamerging.write_inputs` wrote. Each task goes through them in a shuffled order, again and
again. Coefficients and Adam's moments are kept in ``--state``, so that a killed worker goes on where it was. What
counts as time is stepping alone: not loading, not saving. Dropout is off: that of the demo's encoder would cost it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from fusion_bench.method.adamerging.entropy_loss import entropy_loss  # type: ignore[import-not-found,unused-ignore]
from fusion_bench.models.wrappers.layer_wise_fusion import (  # type: ignore[import-not-found,unused-ignore]
    LayerWiseMergedModel,
    get_layer_wise_weights,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from benchmarks.serving import serve

CLASSES = {
    "causal-lm": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
    "sequence-classification": AutoModelForSequenceClassification,
}
LEARNING_RATE, START, BATCH = 1e-3, 0.3, 16  # fusion_bench_config/method/adamerging/clip.yaml


class Inputs:
    """One task's examples, in batches.

    Args:
        tensors: Name -> [n, ...]; ``scored`` says which of a language model's predictions count.
        seed: Of the order.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], seed: int) -> None:
        self._tensors = tensors
        self._seed = seed
        self._count = len(next(iter(tensors.values())))

    def batch(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """A step's inputs, cut to the longest of them, and what of their predictions counts."""
        each = -(-self._count // BATCH)
        epoch, place = divmod(step, each)
        generator = torch.Generator().manual_seed(self._seed + epoch)
        picks = torch.randperm(self._count, generator=generator)[place * BATCH : (place + 1) * BATCH]
        chosen = {name: tensor[picks] for name, tensor in self._tensors.items()}
        if "attention_mask" in chosen:
            longest = int(chosen["attention_mask"].sum(dim=1).max())
            chosen = {name: tensor[:, :longest] for name, tensor in chosen.items()}
        return chosen, chosen.pop("scored", None)


def load(options: argparse.Namespace) -> tuple[LayerWiseMergedModel, list[PreTrainedModel | LayerWiseMergedModel], str]:
    """The merged model, what gives each task's logits, and what stands before its parameters' names."""
    kind = CLASSES[options.kind]
    base, *experts = (kind.from_pretrained(folder) for folder in (options.base, *options.experts))
    own = options.heads == "own"
    merged_base, *bodies = ((model.base_model if own else model) for model in (base, *experts))
    merged = LayerWiseMergedModel(
        layer_wise_weight=get_layer_wise_weights(
            num_models=len(bodies), num_layers=len(list(merged_base.named_parameters())), init_values=START
        ),
        pretrained_model=merged_base,
        finetuned_models=bodies,
        clamp_weights=False,
        tie_weights=True,
        strict=False,
    )
    if not own:
        return merged.eval(), [merged] * len(experts), ""
    prefix = base.base_model_prefix
    for expert in experts:
        setattr(expert, prefix, merged)  # its head stays, and is given what the merged body says
        expert.eval()
    return merged, experts, f"{prefix}."


def main() -> None:
    """Load models, inputs and state, and answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=CLASSES, required=True)
    parser.add_argument("--heads", choices=("own", "merged"), required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True, help="of one advance")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("base")
    parser.add_argument("experts", nargs="+", help="in the order of the tasks")
    options = parser.parse_args()
    stored: dict[str, dict[str, torch.Tensor]] = torch.load(options.inputs, weights_only=True)
    inputs = []
    for task, tensors in stored.items():
        digest = hashlib.sha256(f"{options.seed} {task}".encode()).digest()
        inputs.append(Inputs(tensors, int.from_bytes(digest[:5], "big")))
    merged, judges, prefix = load(options)
    names = [prefix + name for name, _ in merged.pretrained_model.named_parameters()]
    optimizer = torch.optim.Adam([merged.merge_weight], lr=LEARNING_RATE)
    done: dict[str, float] = {"step": 0, "seconds": 0.0}
    if options.state.exists():
        kept: dict[str, Any] = torch.load(options.state, weights_only=True)
        merged.merge_weight.data.copy_(kept["weights"])
        optimizer.load_state_dict(kept["optimizer"])
        done = kept["done"]
    merged.merge_weights()

    def step() -> None:
        for task, judge in zip(inputs, judges, strict=True):
            batch, scored = task.batch(int(done["step"]))
            logits = judge(**batch).logits
            if scored is None:
                loss = entropy_loss(logits)
            else:
                following = batch["input_ids"].roll(-1, dims=1)  # what stands one place after a prediction
                loss = torch.nn.functional.cross_entropy(logits[scored], following[scored])
            loss.backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        merged.merge_weights()

    def advance() -> dict[str, Any]:
        for _ in range(options.steps):
            begun = time.perf_counter()
            step()
            done["seconds"] += time.perf_counter() - begun
            done["step"] += 1
        weights = merged.merge_weight.detach()
        temporary = options.state.with_suffix(".part")
        torch.save({"weights": weights, "optimizer": optimizer.state_dict(), "done": done}, temporary)
        os.replace(temporary, options.state)
        return coefficients()

    def coefficients() -> dict[str, Any]:
        rows = dict(zip(names, merged.merge_weight.detach().T.tolist(), strict=True))
        return {**done, "coefficients": rows}

    serve({"advance": advance, "coefficients": coefficients})


if __name__ == "__main__":
    main()
