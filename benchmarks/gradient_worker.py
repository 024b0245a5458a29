"""Our side of `gradient` and `growth`; it answers "step", "plain" and "coefficients".

A step is: write the coefficients into the resident model, run every task forward and backward, contract the weight
gradients into coefficient gradients, and let Adam move the coefficients. "plain" is the forward and backward alone,
with the same weight gradients accumulated in the same buffers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.clip_case import LEARNING_RATE, START, Case
from benchmarks.opened import open_engine
from benchmarks.serving import serve


def main() -> None:
    """Load the models and answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--form", choices=("accumulate", "hooks"), default="accumulate")
    parser.add_argument("base", type=Path)
    parser.add_argument("experts", type=Path, nargs="+")
    options = parser.parse_args()
    experts = {f"e{index}": folder for index, folder in enumerate(options.experts)}
    opened = open_engine(options.base, experts, form=options.form)
    model, engine = opened.model, opened.engine
    config = model.config
    case = Case.of(tasks=len(experts), batch=options.batch, image=config.image_size, hidden=config.hidden_size)
    weights = torch.nn.Parameter(torch.full((len(opened.names), len(experts)), START))
    optimizer = torch.optim.Adam([weights], lr=LEARNING_RATE)

    def losses() -> float:
        total = 0.0
        for task in range(len(experts)):
            loss = case.loss(model, task)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss)
        return total

    def step() -> float:
        engine.apply(weights.detach().double().numpy())
        with engine.gradient() as gradient:
            total = losses()
        weights.grad = torch.from_numpy(gradient.table()).float()
        optimizer.step()
        return total

    def plain() -> float:
        for parameter in engine.parameters.values():
            parameter.requires_grad_(True)
            if parameter.grad is not None:
                parameter.grad.zero_()
        total = losses()
        for parameter in engine.parameters.values():
            parameter.requires_grad_(False)
        return total

    def coefficients() -> dict[str, list[float]]:
        return dict(zip(opened.names, weights.tolist(), strict=True))

    serve({"step": step, "plain": plain, "coefficients": coefficients})


if __name__ == "__main__":
    main()
