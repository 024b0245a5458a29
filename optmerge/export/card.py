"""The model card of an exported checkpoint: Hub metadata, the recipe in tables, scores when a run has them.

Nothing is looked up on the network.

    text = model_card(recipe, family, result=json.loads((run / "result.json").read_text()))
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from optmerge.export.references import hub_id, outside_reference
from optmerge.merging.coefficients import Table
from optmerge.merging.recipe import Group, Recipe

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family

ROWS = 40  # coefficient tables up to this length are shown whole, longer ones per layer
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
_PIPELINES = {
    "causal-lm": "text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "image-classification": "image-classification",
    "zero-shot-image-classification": "zero-shot-image-classification",
}


def model_card(
    recipe: Recipe, family: Family, *, result: Mapping[str, Any] | None = None, folders: Sequence[str] = ()
) -> str:
    """The README.md of a checkpoint, front matter included.

    Args:
        recipe: What was merged.
        family: Its models.
        result: A run's ``result.json``; its rows become the table of scores.
        folders: The folders of a checkpoint with several heads, the body's first.
    """
    from huggingface_hub import ModelCardData

    names = [hub_id(checkpoint) for checkpoint in (family.base, *family.experts.values())]
    on_hub = [name for name in dict.fromkeys(names) if name]
    data = ModelCardData(
        base_model=on_hub or None,
        base_model_relation="merge" if on_hub else None,
        library_name="transformers",
        license=_license(family.base),
        pipeline_tag="image-text-to-text" if family.sees else _PIPELINES.get(family.kind),
        tags=["merge", "optmerge"],
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        "# A merge of " + ", ".join(recipe.experts),
        _introduction(recipe),
        _usage(recipe, family, folders),
        _models(recipe, family),
        _coefficients(recipe),
        _scores(result) if result and result.get("rows") else "",
        "## Make it again\n\n```bash\noptmerge merge recipe.yaml --to merged\n```\n\n"
        "`recipe.yaml` in this folder (with the file that it names, if tensors have coefficients for their slices) "
        "holds every coefficient and the content hash of every model; `optmerge` refuses models whose hash differs.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(recipe: Recipe) -> str:
    version = recipe.created.get("optmerge")
    made = "Made by optmerge" + (f" {version}" if isinstance(version, str) else "")
    return (
        f"{made}: the base plus, for each of {len(recipe.coefficients)} tensor groups, a coefficient times each of "
        f"{len(recipe.directions)} directions ({', '.join(direction.name for direction in recipe.directions)}). "
        f"Sums are in float32, the weights are stored in {recipe.dtype}."
    )


def _usage(recipe: Recipe, family: Family, folders: Sequence[str]) -> str:
    auto = family.auto_class
    if not folders:
        lines = [f"from transformers import {auto}", "", f'model = {auto}.from_pretrained("path/to/this/folder")']
    else:
        body, *experts = folders
        lines = [f"from transformers import AutoModel, {auto}", ""]
        lines += [f'{auto}.from_pretrained("path/to/this/folder/{expert}")' for expert in experts]
        lines += [f'AutoModel.from_pretrained("path/to/this/folder/{body}")  # the merged body alone']
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _models(recipe: Recipe, family: Family) -> str:
    rows = []
    for name, entry in [("base", recipe.base), *recipe.experts.items()]:
        checkpoint = family.base if name == "base" else family.experts[name]
        revision = entry.revision or checkpoint.revision or ""
        rows.append([name, f"`{_shown(checkpoint)}`", revision[:12], (entry.sha256 or "")[:12]])
    return "## Models\n\n" + _table(["name", "model", "revision", "content sha256"], rows)


def _coefficients(recipe: Recipe) -> str:
    names = [direction.name for direction in recipe.directions]
    table = recipe.coefficients
    if len(recipe.groups) <= ROWS:
        rows = [[_called(group), *_spans(table[at])] for group, at in zip(recipe.groups, recipe.rows, strict=True)]
        head = "Mean (lowest … highest) over the slices of a tensor.\n\n" if len(table) > len(recipe.groups) else ""
        return f"## Coefficients\n\n{head}" + _table(["tensor group", *names], rows)
    places: dict[str, list[int]] = {}
    for index, group in enumerate(recipe.groups):
        places.setdefault(group.kind if group.layer is None else f"layer {group.layer}", []).append(index)
    rows = []
    for place, members in places.items():
        part = np.concatenate([table[recipe.rows[index]] for index in members])
        rows.append([place, str(len(part)), *_spans(part)])
    head = "Mean (lowest … highest) over the groups of each place; the recipe has every one."
    return f"## Coefficients\n\n{head}\n\n" + _table(["place", "groups", *names], rows)


def _called(group: Group) -> str:
    return group.name if group.cut is None else f"{group.name} ({group.count} slices)"


def _spans(part: Table) -> list[str]:
    """Per direction, the coefficient of the rows, or their mean and range."""
    if len(part) == 1:
        return [f"{value:.4g}" for value in part[0]]
    spans = zip(np.mean(part, axis=0), np.min(part, axis=0), np.max(part, axis=0), strict=True)
    return [f"{mean:.3g} ({low:.3g} … {high:.3g})" for mean, low, high in spans]


def _scores(result: Mapping[str, Any]) -> str:
    shown = [row for row in result["rows"] if row.get("report")]
    if not shown:
        return ""
    tasks = list(dict.fromkeys(task for row in shown for task in row["report"]))
    metric = shown[-1].get("metric", "accuracy")
    rows = []
    for row in shown:
        cells = [_score(row["report"].get(task, {}).get(metric)) for task in tasks]
        rows.append([row["name"], _score(row.get("mean")), _ends(row.get("interval")), *cells])
    head = f"Mean {metric} on each task's report split, which steered nothing, with the mean's interval over examples."
    return f"## Scores\n\n{head}\n\n" + _table(["model", "mean", "95 % interval", *tasks], rows)


def _score(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""


def _ends(interval: Mapping[str, Any] | None) -> str:
    return "" if interval is None else f"{_score(interval['low'])} to {_score(interval['high'])}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *(line(row) for row in rows)])


def _shown(checkpoint: Checkpoint) -> str:
    """A Hub id as it is; of a local path the last part, since the rest means nothing elsewhere."""
    reference = outside_reference(checkpoint)
    parts = [reference, reference.adapter] if reference.adapter else [reference]
    return "+".join(Path(part.source).name if part.local else part.source for part in parts)


def _license(checkpoint: Checkpoint) -> str | None:
    """The licence that the base's own card states."""
    card = checkpoint.folder / "README.md"
    if not card.is_file():
        return None
    front = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace"))
    try:
        data = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return None
    found = data.get("license") if isinstance(data, dict) else None
    return found if isinstance(found, str) else None
