"""An explanation as people read it: a few sentences, a page with pictures, and tables as CSV.

    write_explanation(Path("runs/first"), found)      # runs/first/explain/: explain.md, explain.json, CSV, PNGs
    sentences(found)                                  # "topics relies most on the expert topics: ..."

``found`` is what `optmerge.runner.explain` gives.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optmerge.atomic import atomic_write, disk_errors
from optmerge.tracking.explain_plots import (
    SHOWN,
    ablation_figure,
    coefficients_figure,
    reliance_figure,
    sensitivity_figure,
)
from optmerge.tracking.markdown import NONE, number, table
from optmerge.tracking.plots import save_figure

FOLDER, PAGE, FACTS = "explain", "explain.md", "explain.json"
_CONFINED = 3  # variables that are named as the most confined

Found = Mapping[str, Any]


def write_explanation(run: Path, found: Found) -> Path:
    """Write an explanation into ``explain/`` of a run, and give the path of its page.

    Raises:
        RunError: The disk refuses.
    """
    folder = run / FOLDER
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    atomic_write(folder / FACTS, json.dumps(found, indent=1, allow_nan=False) + "\n")
    pictures = {"coefficients": coefficients_figure(found)}
    if found["sensitivity"] is not None:
        pictures["sensitivity"] = sensitivity_figure(found)
        atomic_write(folder / "sensitivity.csv", _csv(found["sensitivity"]["variables"]))
    if found["ablation"]["blocks"]:
        pictures["ablation"] = ablation_figure(found)
        atomic_write(folder / "ablation.csv", _csv([_flat(block) for block in found["ablation"]["blocks"]]))
    if found["reliance"]:
        pictures["reliance"] = reliance_figure(found)
        atomic_write(folder / "reliance.csv", _csv([_flat(entry) for entry in found["reliance"]]))
    for name, figure in pictures.items():
        save_figure(figure, folder / f"{name}.png")
    atomic_write(folder / PAGE, render_page(found, pictures=list(pictures)))
    return folder / PAGE


def sentences(found: Found) -> list[str]:
    """What the explanation comes to, in a few sentences."""
    told = [_relies(found, task) for task in found["per_task"]]
    told += [_could_go(found, entry) for entry in found["droppable"]]
    if found["sensitivity"] is not None:
        told += _confined(found["sensitivity"])
    return [text for text in told if text]


def render_page(found: Found, *, pictures: Sequence[str]) -> str:
    """The text of explain.md."""
    parts = [
        f"# What {found['run']} has learnt",
        "\n".join(f"- {text}" for text in sentences(found)),
        f"Everything is measured at the best recipe, whose objective on the select split is "
        f"{number(found['objective'])}. In brackets: 95 % intervals (paired bootstrap over select examples). The "
        "report split is not looked at. Select has chosen this recipe, so a rise here is somewhat too large: what "
        "happens to suit these examples counts for it.",
        "## Which expert each task relies on",
        *(
            [_reliance(found), "![Rise of each task's objective without an expert](reliance.png)"]
            if found["reliance"]
            else ["The best recipe is the base: every coefficient is 0."]
        ),
        "## Coefficients",
        "Means by layer and kind of tensor, where each element of a tensor counts the same.",
        "![Coefficients by layer and kind](coefficients.png)",
    ]
    if "ablation" in pictures:
        parts += [
            "## Without one part of one expert",
            f"The objective on select when the coefficients of one direction in one {found['ablation']['granularity']} "
            "are set to 0. A dot marks a rise that its interval does not tell from 0. All of them are in ablation.csv.",
            "![Rise of the objective by group and direction](ablation.png)",
        ]
    if found["sensitivity"] is not None:
        parts += ["## Sensitivity", *_sensitivity(found["sensitivity"])]
    elif found["why_no_sensitivity"]:
        parts += ["## Sensitivity", f"Not measured: {found['why_no_sensitivity']}."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _relies(found: Found, task: str) -> str:
    """Which directions a task cannot do without, most important first."""
    part = found["per_task"][task]
    known = [
        (entry["direction"], entry["per_task"][task]) for entry in found["reliance"] if entry["per_task"].get(task)
    ]
    if not known:
        return ""
    known.sort(key=lambda pair: -pair[1][0])
    needed = [(name, told) for name, told in known if told[0] > 0 and (len(told) < 3 or told[1] > 0)]
    harmful = [(name, told) for name, told in known if told[0] < 0 and (len(told) < 3 or told[2] < 0)]
    text = f"{task} relies on {_ranked(needed, part) if needed else 'no single expert'}"
    if harmful:
        text += f"; it would be better without {_ranked(list(reversed(harmful)), part)}"
    return f"{text}."


def _ranked(entries: Sequence[tuple[str, Sequence[float]]], part: float) -> str:
    return ", then ".join(f"{name} ({_share(told, part)} without it)" for name, told in entries)


def _could_go(found: Found, entry: Mapping[str, Any]) -> str:
    if entry["rise"] is None:
        return ""
    all_of_it = len(entry["groups"]) == entry["of"]
    names = "all of it" if all_of_it else shortened(entry["groups"])
    interval = (entry["rise"],) if entry["low"] is None else (entry["rise"], entry["low"], entry["high"])
    together = "" if len(entry["groups"]) == 1 else " together"
    return (
        f"Of {entry['direction']}, {names} could be dropped{together}: {_share(interval, found['objective'])} in the "
        f"objective ({len(entry['groups'])} of {entry['of']} groups)."
    )


def _confined(told: Mapping[str, Any]) -> list[str]:
    known = sorted((v for v in told["variables"] if v["move"] is not None), key=lambda v: v["move"])
    if not known:
        top = ", ".join(variable["name"] for variable in told["variables"][:_CONFINED])
        return [f"The gradient varies most along {top}."]
    listed = ", ".join(f"{v['name']} (by {v['move']:.2g})" for v in known[:_CONFINED])
    median = known[len(known) // 2]["move"]
    text = f"For 1 % more of the objective, the most confined variables may move no further than this: {listed}; half "
    text += f"of all may move by {median:.2g} or more."
    if told["checks"]:
        rises = ", ".join(f"{100 * check['rise']:+.2f} %" for check in told["checks"])
        text += f" (Moved so far, {len(told['checks'])} of them really gave {rises}.)"
    return [text]


def _reliance(found: Found) -> str:
    tasks = list(found["per_task"])
    rows = []
    for entry in found["reliance"]:
        cells = [
            _share(entry["per_task"][task], found["per_task"][task]) if entry["per_task"].get(task) else NONE
            for task in tasks
        ]
        ends = () if entry["low"] is None else (entry["low"], entry["high"])
        whole = NONE if entry["rise"] is None else _share((entry["rise"], *ends), found["objective"])
        rows.append([entry["direction"], *cells, whole])
    return table(["without", *tasks, "objective"], rows, left=(0,))


def _sensitivity(told: Mapping[str, Any]) -> list[str]:
    shown = min(SHOWN, len(told["variables"]))
    text = (
        f"The {shown} most sensitive of {told['dimension']} variables, by the empirical Fisher diagonal: the mean "
        f"square of the gradients of {told['batches']} parts of the fit split."
    )
    if told["curvature_examples"]:
        text += (
            " How far a variable may move until the objective is 1 % higher is told by its gradient and the diagonal "
            f"of the Gauss-Newton matrix, of {told['curvature_examples']} examples a task, with all others held."
        )
    else:
        text += f" How far a variable may move is not known: {told['why_no_curvature']}."
    return [text, "![The most sensitive variables](sensitivity.png)"]


def shortened(groups: Sequence[str]) -> str:
    """Groups as people say them: neighbouring layers as a range.

    >>> shortened(["layer.0", "layer.1", "layer.2", "layer.5", "embedding"])
    'layers 0-2, 5, embedding'
    >>> shortened(["layer.3"]), shortened(["vision.layer.1", "vision.layer.2"])
    ('layer 3', 'vision layers 1-2')
    >>> shortened(["layer.0.mlp", "layer.1.mlp", "layer.1.norm"])
    'layers 0-1 mlp, layer 1 norm'
    """
    layers: dict[tuple[str, str], list[int]] = {}
    order: list[tuple[str, str] | str] = []
    for group in groups:
        found = re.fullmatch(r"(?:(\w+)\.)?layer\.(\d+)(?:\.([\w-]+))?", group)
        if found is None:
            order.append(group)
            continue
        key = (found[1] or "", found[3] or "")
        if key not in layers:
            order.append(key)
        layers.setdefault(key, []).append(int(found[2]))
    return ", ".join(entry if isinstance(entry, str) else _stretches(*entry, layers[entry]) for entry in order)


def _stretches(part: str, kind: str, numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for each in sorted(numbers):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    listed = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    word = "layer" if len(numbers) == 1 else "layers"
    return " ".join(piece for piece in (part, word, listed, kind) if piece)


def _share(told: Sequence[float], whole: float) -> str:
    """A rise in per cent of a whole, with its interval where that is known; in its own unit where the whole is 0."""
    if whole == 0:
        return f"{told[0]:+.3g}"
    ends = [100 * value / abs(whole) for value in told]
    return f"{ends[0]:+.1f} %" + (f" [{ends[1]:+.1f}, {ends[2]:+.1f}]" if len(ends) == 3 else "")


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A knockout as one row of a table: a column per task."""
    plain = {key: value for key, value in entry.items() if key != "per_task"}
    return plain | {f"rise {task}": told[0] for task, told in entry["per_task"].items()}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    head = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
