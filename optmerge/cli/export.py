"""``optmerge export RUN``: a recipe of a run as a checkpoint, a mergekit config, or a table of coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.completion import formats
from optmerge.cli.options import AllowPickle, Json, RunFolder
from optmerge.cli.output import Output


def export(
    run: RunFolder,
    format: Annotated[
        str,
        typer.Option(
            "--format", "-f", metavar="FORMAT", autocompletion=formats, help="checkpoint, mergekit or coefficients."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="Folder or file to write; never overwritten.")],
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="TASK=WEIGHT,...",
            help="Another merge of the front: the lowest weighted sum of select values; tasks not named count 1.",
        ),
    ] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Write a run's best recipe for others to use.

    checkpoint: a transformers folder with tokenizer and model card (one folder per task where heads differ).
    mergekit: a config that reproduces the merge. coefficients: .yaml, .json or .csv.
    """
    from optmerge.cli.progress import progress_bar
    from optmerge.export.api import export as write
    from optmerge.export.front import parse_weights, pick

    chosen = None if weights is None else parse_weights(weights)
    picked = None if chosen is None else pick(run, chosen)
    with progress_bar() as progress:
        written = write(run, format, to, weights=chosen, allow_pickle=allow_pickle, progress=progress)
    output = Output(json)
    facts: dict[str, object] = {"format": format, "path": written}
    if picked is not None:
        facts |= {"record": picked.record, "weights": picked.weights, "select": picked.select}
        values = ", ".join(
            f"{task} {value:.4g} (weight {picked.weights[task]:g})" for task, value in picked.select.items()
        )
        output.say(f"Picked record {picked.record} from the front; objective on select: {values}")
    output.facts(facts)
    output.say(f"Wrote {written}")
