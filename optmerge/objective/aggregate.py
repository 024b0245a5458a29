"""How tasks' parts become one value: their mean, the worst of them, or the mean of the worst share.

    weigh = task_weights(config.aggregate, parts, shares)       # task -> weight; they sum to 1
    value = sum(weigh[task] * parts[task] for task in parts)

Every aggregate is linear in the parts once its weights are known, and the weights are then also the derivatives of the
value by the parts (a subgradient where two parts are equal). So a gradient needs the parts first, and no more than a
weighted sum of losses afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from optmerge.config.objectives import AggregateConfig, CVaRConfig, MeanConfig


def task_weights(
    config: AggregateConfig, parts: Mapping[str, float], shares: Mapping[str, float]
) -> Mapping[str, float]:
    """Each task's weight in the value, given what the tasks' parts are.

    ``mean`` gives p[t]. ``worst`` gives 1 to the task with the highest part. ``cvar`` is the conditional value at risk
    of the parts x with probabilities p (Rockafellar & Uryasev 2000, equations 4 and 5):

        CVaR_b(x) = min over eta of  eta + 1/b sum_t p[t] max(x[t] - eta, 0) = sum_t q[t] x[t],

    where q goes to the highest parts first, q[t] = min(p[t], what is left of b) / b. The tail b is ceil(share T) / T
    for T tasks, so that with equal weights it is the plain mean of the worst ceil(share T) tasks.

    Args:
        config: Which aggregate.
        parts: Task -> its part of the objective, higher being worse; NaN counts as the worst.
        shares: Task -> p[t], its share of the mean; they sum to 1. A task with share 0 has no say.
    """
    if isinstance(config, MeanConfig):
        return shares
    weights = dict.fromkeys(parts, 0.0)
    # Equal parts are taken in the order of the tasks: sorting is stable.
    order = sorted(
        (task for task in parts if shares[task] > 0.0),
        key=lambda task: math.inf if math.isnan(parts[task]) else parts[task],
        reverse=True,
    )
    if not isinstance(config, CVaRConfig):
        weights[order[0]] = 1.0
        return weights
    tail = math.ceil(round(config.share * len(order), 9)) / len(order)
    left = tail
    for task in order:
        taken = min(shares[task], left)
        weights[task] = taken / tail
        left -= taken
        if left <= 1e-12:
            break
    return weights
