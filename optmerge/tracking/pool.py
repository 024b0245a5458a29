"""The relevance of a pool's experts as people read it: a table, CSV and JSON, and a picture by layer.

write_pool(found)            # pool.json, pool.csv and pool.png in the folder of the measurement
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optmerge.atomic import atomic_write
from optmerge.runner.pool import Pool
from optmerge.tracking.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = ["rank", "expert", "promised fall", "picked", "at the base", "weight", "tasks"]

_CELL = 0.28  # inches
_LONGEST = 16.0


def pool_rows(found: Pool) -> list[list[str]]:
    """The table's rows, under `HEAD`."""
    return [
        [
            str(rank),
            expert.name,
            f"{expert.fall:.4f}",
            f"{100 * expert.picked:.0f} %",
            f"{expert.at_base:+.4f}",
            f"{expert.weight:.3f}",
            ", ".join(expert.tasks),
        ]
        for rank, expert in enumerate(found.experts, 1)
    ]


def write_pool(found: Pool) -> Path:
    """Write JSON, CSV and picture into the folder of the measurement, and give the path of the CSV.

    Raises:
        RunError: The disk refuses.
    """
    atomic_write(found.folder / "pool.json", json.dumps(asdict(found), indent=1, default=str) + "\n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["rank", "expert", "fall", "picked", "at_base", "weight", "tasks", *found.groups])
    for rank, expert in enumerate(found.experts, 1):
        own = [expert.fall, expert.picked, expert.at_base, expert.weight, " ".join(expert.tasks)]
        writer.writerow([rank, expert.name, *own, *(expert.by_group[group] for group in found.groups)])
    path = found.folder / "pool.csv"
    atomic_write(path, buffer.getvalue())
    save_figure(pool_figure(found), found.folder / "pool.png")
    return path


def pool_figure(found: Pool) -> Figure:
    """How often each expert (down) was chosen in each tensor group (across), and beside it what it promised."""
    from matplotlib.figure import Figure

    names = [expert.name for expert in found.experts]
    shares = np.array([[expert.by_group[group] for group in found.groups] for expert in found.experts])
    height = min(_LONGEST, 1.8 + _CELL * len(names))
    figure = Figure(figsize=(min(_LONGEST, 6.5 + _CELL * len(found.groups)), height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    image = left.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    left.set_yticks(range(len(names)), names, fontsize=7)
    left.set_xticks(range(len(found.groups)), found.groups, rotation=90, fontsize=6)
    left.set_title(f"share of {found.points} points at which the oracle chose", fontsize=9)
    figure.colorbar(image, ax=left, fraction=0.04)
    right.barh(range(len(names)), [expert.fall for expert in found.experts], color="#0072B2", height=0.65)
    right.set_title("promised fall of the objective", fontsize=9)
    return figure
