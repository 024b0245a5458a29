"""One side of `apply`: answers "apply" (writes coefficients) and "copy" (moves the same number of bytes).

Every apply writes other coefficients than the one before in every tensor, none of them 0 or 1, so all of it is
rewritten each time. The kernels are those that the environment variable OPTMERGE_KERNELS names.
"""

from __future__ import annotations

import argparse
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from benchmarks.opened import open_engine
from benchmarks.serving import serve


def main() -> None:
    """Open the models and answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base", type=Path)
    parser.add_argument("experts", type=Path, nargs="+")
    options = parser.parse_args()
    experts = {f"e{index}": folder for index, folder in enumerate(options.experts)}
    opened = open_engine(options.base, experts, form="accumulate")
    generator = np.random.default_rng(0)
    tables = cycle([generator.uniform(0.1, 0.9, (len(opened.names), len(experts))) for _ in range(2)])
    # An apply reads base and experts and writes the model: K + 2 models. A copy of one model reads it and writes it.
    models = len(experts) + 2
    source = torch.ones(opened.nbytes, dtype=torch.uint8)
    target = torch.zeros_like(source)
    half = source.numel() // 2

    def apply() -> int:
        return opened.engine.apply(next(tables))

    def copy() -> int:
        for _ in range(models // 2):
            target.copy_(source)
        if models % 2:
            target[:half].copy_(source[:half])
        return models * opened.nbytes

    serve({"apply": apply, "copy": copy})


if __name__ == "__main__":
    main()
