"""FusionBench's side of `gradient` and `growth`: layer-wise AdaMerging as its own training loop does it.

Run in FusionBench's environment with the folders of the base and of the experts; it answers "step" and
"coefficients". A step is the body of the loop in fusion_bench/method/adamerging/layer_wise_adamerging.py with the
settings of its CLIP recipe: every task's entropy is back-propagated through the merge, then Adam moves the
coefficients, then the model is merged.
"""

from __future__ import annotations

import argparse

import torch
from fusion_bench.models.wrappers.layer_wise_fusion import (  # type: ignore[import-not-found,unused-ignore]
    LayerWiseMergedModel,
    get_layer_wise_weights,
)
from transformers import CLIPVisionModel

from benchmarks.clip_case import LEARNING_RATE, START, Case
from benchmarks.serving import serve


def main() -> None:
    """Load the models and answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("base")
    parser.add_argument("experts", nargs="+")
    options = parser.parse_args()
    base = CLIPVisionModel.from_pretrained(options.base)
    experts = [CLIPVisionModel.from_pretrained(folder) for folder in options.experts]
    config = base.config
    case = Case.of(tasks=len(experts), batch=options.batch, image=config.image_size, hidden=config.hidden_size)
    names = [name for name, _ in base.named_parameters()]
    weights = get_layer_wise_weights(num_models=len(experts), num_layers=len(names), init_values=START)
    merged = LayerWiseMergedModel(
        layer_wise_weight=weights,
        pretrained_model=base,
        finetuned_models=experts,
        clamp_weights=False,
        tie_weights=True,
        strict=False,
    )
    optimizer = torch.optim.Adam([merged.merge_weight], lr=LEARNING_RATE)
    merged.train()
    merged.merge_weights()

    def step() -> float:
        total = 0.0
        for task in range(len(experts)):
            loss = case.loss(merged, task)
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            total += float(loss)
        optimizer.step()
        optimizer.zero_grad()
        merged.merge_weights()
        return total

    def coefficients() -> dict[str, list[float]]:
        return dict(zip(names, merged.merge_weight.detach().T.tolist(), strict=True))

    serve({"step": step, "coefficients": coefficients})


if __name__ == "__main__":
    main()
