"""What statistics for methods will cost, before any is gathered.

needs = needs_of(directions, ["law", "code"])                     # {"fisher"}
statistics_passes(needs, calibration, experts=2)                  # forward passes over the fit split
statistics_bytes(needs, family)                                   # of their sums, on the model's device
layer_inputs_bytes(needs, calibration, {"law": 768}, 4)           # of what layers gave, on the CPU
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from optmerge.config.methods import Need
from optmerge.merging.methods import build_method
from optmerge.merging.output_statistics import LARGEST
from optmerge.merging.recipe import Direction
from optmerge.merging.statistics import BUDGET
from optmerge.runner.likelihoods import count_scalars

if TYPE_CHECKING:
    from optmerge.calibration.data import Calibration
    from optmerge.calibration.task_data import TaskData
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
    """What the sums of one pass take at most, and those of one layer where all experts' are wanted at once."""
    shapes = [(parameter.shape, parameter.input_first) for parameter in family.parameters.values()]
    matrices = [shape[::-1] if input_first else shape for shape, input_first in shapes if len(shape) == 2]
    entries = sum(parameter.numel for parameter in family.parameters.values())
    sizes: dict[Need, int] = dict.fromkeys(set(needs) - {"merged-grams", "logit-distance"}, entries)
    if "grams" in needs:
        sizes["grams"] = sum(inputs**2 for _, inputs in matrices)
    if "output-grams" in needs:
        sizes["output-grams"] = sum(outputs**2 for outputs, _ in matrices if outputs <= LARGEST)
    one_pass = min(4 * max(sizes.values(), default=0), BUDGET)
    layers: Counter[int | None] = Counter()
    for parameter in family.parameters.values() if "merged-grams" in needs else ():
        if len(parameter.shape) == 2:
            layers[parameter.role.layer] += parameter.shape[0 if parameter.input_first else 1] ** 2
    return max(one_pass, 4 * len(family.experts) * max(layers.values(), default=0))


def layer_inputs_bytes(
    needs: Collection[Need], calibration: Calibration, widths: Mapping[str, int], itemsize: int
) -> int:
    """What statistics of a merge that goes on layer by layer keep on the CPU: what two layers gave for every example.

    Args:
        needs: The statistics that are wanted.
        calibration: Whose fit inputs they are of.
        widths: Expert -> width of its hidden states.
        itemsize: Bytes of each of their numbers.
    """
    if "merged-grams" not in needs:
        return 0
    return 2 * itemsize * sum(task.splits["fit"].tokens * widths[task.expert] for task in calibration.tasks.values())


def _passes(need: Need, task: TaskData, experts: int) -> float:
    if need in ("grams", "merged-grams"):
        return 2.0 if need == "merged-grams" else 1.0  # each layer is run as the expert's and as the merged one
    if need == "logit-distance":
        return float(experts)
    scalars = 1
    if need in ("fisher", "output-grams"):
        one_each = task.kind.endswith("classification") and task.kind != "token-classification"
        scalars = count_scalars(task.num_labels or WORDS, one_each=one_each)
    return 1.0 + BACK * scalars
