"""``optmerge explain RUN``: what a finished search has learnt, in words, numbers and pictures."""

from __future__ import annotations

from typing import Annotated

import typer

from optmerge.cli.options import Json, RunFolder, Verbose
from optmerge.cli.output import Output


def explain(
    run: RunFolder,
    passes: Annotated[
        int,
        typer.Option(
            "--passes",
            metavar="N",
            min=1,
            help="The most forward passes over select for the ablation of groups, and over fit for the curvature.",
        ),
    ] = 200,
    cheap: Annotated[bool, typer.Option("--cheap", help="Leave out the ablation of groups.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Explain a finished run: coefficients, sensitivity, ablations.

    Says which expert each task relies on, what could be dropped, and how far each coefficient may move; the numbers,
    pictures and a page go into explain/ of the run, and its report links to them.
    """
    from optmerge.cli.progress import progress_bar
    from optmerge.cli.running import configure_logging

    configure_logging(verbose=verbose)
    from optmerge.runner.explain import explain as measure
    from optmerge.tracking.explain_page import sentences, write_explanation
    from optmerge.tracking.report import write_report

    output = Output(json)
    with progress_bar() as progress:
        found = measure(run, passes=passes, cheap=cheap, progress=progress, tell=output.note)
    page = write_explanation(run, found)
    write_report(run)
    output.facts({"page": page, "summary": sentences(found), **found})
    for text in sentences(found):
        output.say(text)
    output.say(f"\nExplanation: {page}")
