"""The base model of `lora` alone: the same forward and backward as the search's, and nothing else; prints its loss.

Weights are in memory of its own, as they are in a search or a training, and every weight that the adapters change gets
a gradient, accumulated over the tasks. The loss is the cross-entropy of the next token.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Load, then some rounds of forward and backward over all texts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("base")
    parser.add_argument("data", type=Path, nargs="+")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForCausalLM.from_pretrained(options.base)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.clone()  # not a view of the file
        parameter.requires_grad_(name.endswith("_proj.weight"))
    total = 0.0
    for _ in range(options.rounds):
        for path in options.data:
            texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[: options.texts]]
            inputs = tokenizer(texts, return_tensors="pt", padding=True)
            logits = model(**inputs, use_cache=False).logits.float()
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
    print(total)


if __name__ == "__main__":
    main()
