"""The model card of an exported checkpoint: Hub metadata, scores, the recipe in tables, how to make it again.

Nothing is looked up on the network.

    text = model_card(recipe, family, evidence=Evidence.of_run(Path("runs/first")))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optmerge.export.card_metadata import card_metadata, title
from optmerge.export.evidence import PROVENANCE, Evidence
from optmerge.export.licence import inherit
from optmerge.export.references import outside_reference
from optmerge.merging.coefficients import Table
from optmerge.merging.recipe import Group, Recipe
from optmerge.tracking.markdown import table

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint
    from optmerge.models.family import Family

ROWS = 40  # coefficient tables up to this length are shown whole, longer ones per layer


def model_card(
    recipe: Recipe,
    family: Family,
    *,
    evidence: Evidence | None = None,
    folders: Sequence[str] = (),
    not_mergekit: str = "",
) -> str:
    """The README.md of a checkpoint, front matter included.

    Args:
        recipe: What was merged.
        family: Its models.
        evidence: What its run knows; its rows become the table of scores.
        folders: The folders of a checkpoint with several heads, the body's first.
        not_mergekit: Why no mergekit config lies beside the card; empty where one does.
    """
    inherited = inherit(family)
    data = card_metadata(recipe, family, inherited=inherited, evidence=evidence, mergekit=not not_mergekit)
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title(recipe)}",
        _introduction(recipe),
        evidence.answer if evidence else "",
        _usage(recipe, family, folders),
        _models(recipe, family),
        f"## Licence\n\n{inherited.section()}",
        _scores(evidence) if evidence and evidence.rows else "",
        _search(evidence) if evidence else "",
        _coefficients(recipe),
        _again(evidence, not_mergekit),
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
    return "## Models\n\n" + table(["name", "model", "revision", "content sha256"], rows, left=range(4))


def _coefficients(recipe: Recipe) -> str:
    names = [direction.name for direction in recipe.directions]
    values = recipe.coefficients
    if len(recipe.groups) <= ROWS:
        rows = [[_called(group), *_spans(values[at])] for group, at in zip(recipe.groups, recipe.rows, strict=True)]
        head = "Mean (lowest … highest) over the slices of a tensor.\n\n" if len(values) > len(recipe.groups) else ""
        return f"## Coefficients\n\n{head}" + table(["tensor group", *names], rows, left=(0,))
    places: dict[str, list[int]] = {}
    for index, group in enumerate(recipe.groups):
        places.setdefault(group.kind if group.layer is None else f"layer {group.layer}", []).append(index)
    rows = []
    for place, members in places.items():
        part = np.concatenate([values[recipe.rows[index]] for index in members])
        rows.append([place, str(len(part)), *_spans(part)])
    head = "Mean (lowest … highest) over the groups of each place; the recipe has every one."
    return f"## Coefficients\n\n{head}\n\n" + table(["place", "groups", *names], rows, left=(0,))


def _called(group: Group) -> str:
    return group.name if group.cut is None else f"{group.name} ({group.count} slices)"


def _spans(part: Table) -> list[str]:
    """Per direction, the coefficient of the rows, or their mean and range."""
    if len(part) == 1:
        return [f"{value:.4g}" for value in part[0]]
    spans = zip(np.mean(part, axis=0), np.min(part, axis=0), np.max(part, axis=0), strict=True)
    return [f"{mean:.3g} ({low:.3g} … {high:.3g})" for mean, low, high in spans]


def _scores(evidence: Evidence) -> str:
    shown = evidence.rows
    tasks = list(dict.fromkeys(task for row in shown for task in row["report"]))
    metric = shown[-1].get("metric", "accuracy")
    rows = []
    for row in shown:
        cells = [_score(row["report"].get(task, {}).get(metric)) for task in tasks]
        rows.append([row["name"], _score(row.get("mean")), _ends(row.get("interval")), *cells])
    head = f"Mean {metric} on each task's report split, which steered nothing, with the mean's interval over examples."
    if evidence.row is not None:
        head += (
            f" The row `{evidence.row['name']}` is this merge; the others are baselines, scored by the same evaluator "
            "on the same examples."
        )
    return f"## Scores\n\n{head}\n\n" + table(["model", "mean", "95 % interval", *tasks], rows, left=(0,))


def _score(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float | int) else ""


def _ends(interval: Mapping[str, Any] | None) -> str:
    return "" if interval is None else f"{_score(interval['low'])} to {_score(interval['high'])}"


def _search(evidence: Evidence) -> str:
    """What was searched, by whom, for what, at which cost; as far as the manifest says it."""
    search, lines = evidence.search, []
    terms = [term["name"] for term in (search.get("objective") or {}).get("terms", [])]
    drivers = [stage["driver"] for stage in evidence.manifest.get("stages", [])]
    drivers = drivers or [name for name in [(search.get("driver") or {}).get("name")] if name]
    if terms:
        lines.append(f"- objective: {', '.join(f'`{term}`' for term in terms)}")
    if drivers:
        lines.append(f"- driver: {', then '.join(f'`{driver}`' for driver in drivers)}")
    if "dimension" in evidence.manifest:
        spaces = (search.get("space") or {}).get("granularity", "")
        lines.append(f"- search space: {spaces + ', ' if spaces else ''}{evidence.manifest['dimension']} variables")
    evaluations = (evidence.result.get("best") or {}).get("evaluations")
    if evaluations is not None:
        lines.append(f"- evaluations until the best on the select split: {evaluations}")
    for task, sizes in evidence.manifest.get("splits", {}).items():
        counted = ", ".join(f"{split} {count}" for split, count in sizes.items())
        lines.append(f"- examples of {task}: {counted}")
    if evidence.tracked_at:
        lines.append(f"- [the run at Weights & Biases]({evidence.tracked_at})")
    return "## Search\n\n" + "\n".join(lines) if lines else ""


def _again(evidence: Evidence | None, not_mergekit: str) -> str:
    lines = ["optmerge merge recipe.yaml --to merged    # this checkpoint"]
    told = [
        "`recipe.yaml` in this folder (with the file that it names, if tensors have coefficients for their slices) "
        "holds every coefficient and the content hash of every model; `optmerge` refuses models whose hash differs."
    ]
    if evidence and evidence.search:
        lines.append(f"optmerge search --reproduce {PROVENANCE} --output again    # the search that found it")
        told.append(
            f"`{PROVENANCE}` has the search, its seed, and the versions, hardware and hashes of models and data that "
            "it ran with; what differs elsewhere is said before it runs. Models and data may lie elsewhere: "
            "`--set base=FOLDER`, `--set experts.NAME=FOLDER`, `--set tasks.NAME.data=FILE`."
        )
    if not_mergekit:
        told.append(f"There is no config for mergekit here, since mergekit cannot make this merge: {not_mergekit}.")
    else:
        told.append("`mergekit_config.yml` makes the same merge with mergekit; its first lines say how.")
    commands = "\n".join(lines)
    return f"## Make it again\n\n```bash\n{commands}\n```\n\n" + "\n\n".join(told)


def _shown(checkpoint: Checkpoint) -> str:
    """A Hub id as it is; of a local path the last part, since the rest means nothing elsewhere."""
    reference = outside_reference(checkpoint)
    parts = [reference, reference.adapter] if reference.adapter else [reference]
    return "+".join(Path(part.source).name if part.local else part.source for part in parts)
