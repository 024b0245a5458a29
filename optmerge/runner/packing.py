"""Whether examples that share a row of a language model's inputs are judged as they would be alone.

check_packing(problem)          # before anything is measured; raises what the user can mend

Whether attention reaches across examples, and whether positions start anew, is up to the architecture's own code. So it
is not looked up but measured: one batch, packed and not packed, through the model itself.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

from optmerge.errors import ConfigError
from optmerge.objective.base import scored_logits

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem

_EXACT = 1e-4  # most mean difference of logits, as a share of their mean size
_ROUNDED = 0.05  # the same for a model in half precision, in which the order of a sum already shows


def check_packing(problem: Problem) -> None:
    """Compare the logits of the fullest rows of every packed task with those of the same examples alone.

    Raises:
        ConfigError: They differ, or the architecture takes no positions.
    """
    for task, data in problem.calibration.tasks.items():
        splits = [split for split in data.splits.values() if split.unpacked() is not split]
        if not splits:
            continue
        model = problem.model(task)
        name = type(model).__name__
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise ConfigError(
                f"tasks.{task}.pack is true, and {name} takes no positions of tokens, so it cannot tell where an "
                "example ends and the next begins in a row. Set pack: false."
            )
        limit = problem.config.batch_tokens
        found = [(split, batch) for split in splits for batch in split.batches(batch_tokens=limit)]
        split, packed = max(found, key=lambda pair: pair[1].size / len(pair[1].inputs["input_ids"]))
        (alone,) = split.unpacked().batches(batch_tokens=limit, positions=packed.positions.tolist())
        with torch.no_grad():
            rows = [
                scored_logits(problem.outputs(task, batch).logits, batch).float()
                for batch in (packed.to(problem.device), alone.to(problem.device))
            ]
        difference = float((rows[0] - rows[1]).abs().mean() / rows[1].abs().mean())
        if not difference <= (_EXACT if problem.dtype == torch.float32 else _ROUNDED):
            raise ConfigError(
                f"tasks.{task}.pack is true, and {name} judges examples that share a row differently than alone: its "
                f"logits differ by {difference:.2g} of their size. Set pack: false; values do not depend on it."
            )
