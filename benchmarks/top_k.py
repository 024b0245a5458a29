"""How near the KL to what is kept of an expert comes to the whole one, on the language example.

    python -m benchmarks.top_k

The divergence is measured at the base and at task arithmetic 0.6 with some of the vocabulary's 49,152 classes kept (all
others together are one), with and without classes drawn from the others, and with all of them; beside it stands what
the teachers' outputs take.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.harness import ROOT, mebibytes, parser, show
from benchmarks.language import Size, make_zoo, settings
from optmerge.config.load import build_config
from optmerge.merging.engine import one_hot
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.problem import open_problem
from optmerge.runner.teachers import Teachers

Kept = tuple[int | None, int]
"""Classes kept, None is all; and classes drawn from the others."""
KEPT: tuple[Kept, ...] = ((64, 0), (128, 0), (32, 32), (64, 32), (64, 64), (128, 64), (None, 0))
TERM = "expert-kl"


def measure(wanted: dict[str, Any], kept: Kept) -> tuple[dict[str, dict[str, float]], int]:
    """Recipe -> task -> mean KL on select in nats per token, and what the teachers' outputs take in bytes."""
    objective = {"terms": [{"name": TERM, "top_k": kept[0], "tail_samples": kept[1], "normalise": "none"}]}
    problem = open_problem(build_config(wanted | {"objective": objective}, root=ROOT))
    teachers = Teachers.make(problem)
    evaluator = Evaluator(problem, teachers)
    zero = np.zeros_like(one_hot(problem.space.num_rows, len(problem.directions), 0))
    tables = {"base": zero, "uniform 0.6": zero + 0.6}
    found = {name: evaluator.measure(table, "select").means for name, table in tables.items()}
    means = {name: {task: terms[TERM] for task, terms in tasks.items()} for name, tasks in found.items()}
    return means, teachers.nbytes


def main() -> None:
    """Measure every k and print the table."""
    options = parser(__doc__).parse_args()
    size = Size(training_steps=4, tokens=32, fit=8, select=8, report=8) if options.small else Size()
    zoo = make_zoo(size)
    wanted = settings(zoo, size, TERM, ROOT / "runs" / "unused") | {
        "splits": {"fit": 1, "select": size.select, "report": 1},
        "space": "task-wise",
    }
    results = {kept: measure(wanted, kept) for kept in KEPT}
    whole, _ = results[None, 0]
    rows = []
    for (k, drawn), (means, nbytes) in results.items():
        shares = [means[name][task] / whole[name][task] - 1 for name in whole for task in whole[name]]
        values = [f"{np.mean(list(means[name].values())):.4f}" for name in whole]
        kept, apart = ("all", "-") if k is None else (str(k), f"{100 * max(shares, key=abs):+.2f} %")
        rows.append([kept, "-" if k is None else str(drawn), *values, apart, mebibytes(nbytes)])
    show(
        "KL to the classes that are kept of an expert",
        ["classes kept", "drawn", *(f"KL at {name}" for name in whole), "furthest from all", "teachers' outputs"],
        rows,
        ["KL in nats per token, mean over domains; furthest: over recipes and domains."],
    )


if __name__ == "__main__":
    main()
