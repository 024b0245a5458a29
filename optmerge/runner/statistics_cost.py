"""What statistics for methods will cost, before any is gathered.

needs = needs_of(directions, ["law", "code"])                     # {"fisher"}
statistics_passes(needs, calibration, experts=2)                  # forward passes over the fit split
statistics_bytes(needs, family)                                   # of their sums, on the model's device
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from optmerge.config.methods import Need
from optmerge.merging.methods import build_method
from optmerge.merging.output_statistics import LARGEST
from optmerge.merging.recipe import Direction
from optmerge.merging.statistics import BUDGET
from optmerge.runner.likelihoods import count_scalars

if TYPE_CHECKING:
    from optmerge.calibration.data import Calibration, TaskData
    from optmerge.models.family import Family

BACK = 2.0  # forward passes that one back costs
WORDS = 1 << 15  # classes, where they are a vocabulary: too many to go back from each


def needs_of(directions: Sequence[Direction], experts: Sequence[str]) -> frozenset[Need]:
    """The statistics that the methods among some directions need."""
    configs = [direction.config for direction in directions if direction.config is not None]
    return frozenset[Need]().union(*(build_method(config, experts).needs for config in configs))


def statistics_passes(needs: Collection[Need], calibration: Calibration, *, experts: int) -> float:
    """As how many forward passes over all fit examples gathering these statistics counts, if no cache has them.

    Where an expert's sums do not fit into memory together, it takes more.
    """
    tokens = {task.name: task.splits["fit"].tokens for task in calibration.tasks.values()}
    spent = [tokens[task.name] * _passes(need, task, experts) for task in calibration.tasks.values() for need in needs]
    return sum(spent) / max(1, sum(tokens.values()))


def statistics_bytes(needs: Collection[Need], family: Family) -> int:
    """What the sums of one pass take at most."""
    shapes = [(parameter.shape, parameter.input_first) for parameter in family.parameters.values()]
    matrices = [shape[::-1] if input_first else shape for shape, input_first in shapes if len(shape) == 2]
    entries = sum(parameter.numel for parameter in family.parameters.values())
    sizes: dict[Need, int] = dict.fromkeys(needs, entries)
    sizes |= {need: sum(inputs**2 for _, inputs in matrices) for need in needs if need in ("grams", "merged-grams")}
    if "output-grams" in needs:
        sizes["output-grams"] = sum(outputs**2 for outputs, _ in matrices if outputs <= LARGEST)
    sizes.pop("logit-distance", None)
    return min(4 * max(sizes.values(), default=0), BUDGET)


def _passes(need: Need, task: TaskData, experts: int) -> float:
    if need in ("grams", "merged-grams"):
        return 1.0
    if need == "logit-distance":
        return float(experts)
    scalars = 1
    if need in ("fisher", "output-grams"):
        one_each = task.kind.endswith("classification") and task.kind != "token-classification"
        scalars = count_scalars(task.num_labels or WORDS, one_each=one_each)
    return 1.0 + BACK * scalars
