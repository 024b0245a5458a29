"""``optmerge plan FILE``: what a search will cost, before any weight is loaded."""

from __future__ import annotations

from optmerge.cli.options import AllowPickle, Json, Limit, SearchFile, Sets, overrides
from optmerge.cli.output import Output, duration, size


def plan(
    file: SearchFile,
    sets: Sets = None,
    limit: Limit = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Show what a search will cost, without loading weights.

    Variables, tensors per group, evaluations, memory, and a rough time.
    """
    from optmerge.config.load import load_config

    config = load_config(file, overrides=overrides(sets, limit=limit, allow_pickle=allow_pickle))
    from optmerge.runner.plan import make_plan

    made = make_plan(config, root=file.parent)
    output = Output(json)
    output.facts(made)
    output.table(
        ["group", "layer", "kind", "tensors", "parameters"],
        [
            [row.name, "-" if row.layer is None else row.layer, row.kind, row.tensors, f"{row.parameters:,}"]
            for row in made.groups
        ],
        right=["layer", "tensors", "parameters"],
    )
    output.say(
        f"\n{made.dimension} variables: {len(made.groups)} groups, {len(made.directions)} directions "
        f"({', '.join(made.directions)})"
    )
    budget = "no limit on evaluations" if made.evaluations is None else f"{made.evaluations} evaluations"
    output.say(f"{budget} with {config.driver.name}, after {made.baselines} baselines\n")
    output.table(["memory", ""], [[part, size(count)] for part, count in made.memory.items() if count], right=[""])
    if made.seconds:
        output.say()
        output.table(
            ["time (rough)", ""], [[part, duration(value)] for part, value in made.seconds.items()], right=[""]
        )
    for warning in made.warnings:
        output.note(f"note: {warning}")
