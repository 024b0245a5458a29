"""``optmerge plan FILE``: what a search will cost, before any weight is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from optmerge.cli.options import AllowPickle, Json, Limit, SearchFile, Sets, overrides
from optmerge.cli.output import Output, duration, size

if TYPE_CHECKING:
    from optmerge.runner.plan import Plan

FEW_GROUPS = 24


def plan(
    file: SearchFile,
    sets: Sets = None,
    limit: Limit = None,
    groups: Annotated[
        bool, typer.Option("--groups", help=f"List every tensor group, also when there are more than {FEW_GROUPS}.")
    ] = False,
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
    if groups or len(made.groups) <= FEW_GROUPS:
        _list_groups(made, output)
    else:
        _list_kinds(made, output)
    output.say(
        f"\n{made.dimension:,} variables: {sum(row.slices for row in made.groups):,} groups, "
        f"{len(made.directions)} directions ({', '.join(made.directions)})"
    )
    budget = "no limit on evaluations" if made.evaluations is None else f"{made.evaluations} evaluations"
    if len(made.stages) == 1:
        output.say(f"{budget} with {made.stages[0].driver}, after {made.baselines} baselines\n")
    else:
        output.say(f"{budget} in {len(made.stages)} stages, after {made.baselines} baselines\n")
        _list_stages(made, output)
    if made.workers > 1:
        output.say(
            f"{made.workers} workers, each with this memory; together about {made.per_hour:,.0f} evaluations an hour"
        )
    output.table(["memory", ""], [[part, size(count)] for part, count in made.memory.items() if count], right=[""])
    if made.devices:
        head = ["device", "weights", "at the peak", "may be used"]
        rows = [[each.device, size(each.weights), size(each.needed), size(each.budget)] for each in made.devices]
        output.table(head, rows, right=head[1:])
    output.say(f"{size(made.budget)} may be used; mapped files ({size(made.mapped)}) are no part of it")
    if made.disk is not None and made.disk > 1e6:
        output.say(f"the run's folder keeps {size(made.disk)} of vectors and gradients")
    output.say(made.arithmetic)
    output.say()
    output.table(["time (rough)", ""], [[part, duration(value)] for part, value in made.seconds.items()], right=[""])
    for warning in made.warnings:
        output.note(f"note: {warning}")


def _list_groups(made: Plan, output: Output) -> None:
    head = ["group", "layer", "kind", "tensors", "slices", "parameters"]
    rows = [
        [row.name, "-" if row.layer is None else row.layer, row.kind, row.tensors, row.slices, f"{row.parameters:,}"]
        for row in made.groups
    ]
    if all(row.slices == 1 for row in made.groups):
        head, rows = [*head[:4], head[5]], [[*row[:4], row[5]] for row in rows]
    output.table(head, rows, right=["layer", "tensors", "slices", "parameters"])


def _list_stages(made: Plan, output: Output) -> None:
    rows = [
        [
            number,
            row.driver,
            row.granularity,
            f"{row.dimension:,}",
            "-" if row.evaluations is None else row.evaluations,
            duration(row.seconds),
        ]
        for number, row in enumerate(made.stages, 1)
    ]
    head = ["stage", "driver", "space", "variables", "evaluations", "each (rough)"]
    output.table(head, rows, right=["stage", "variables", "evaluations", "each (rough)"])
    output.say()


def _list_kinds(made: Plan, output: Output) -> None:
    rows = []
    for kind in dict.fromkeys(row.kind for row in made.groups):
        members = [row for row in made.groups if row.kind == kind]
        layers = len({row.layer for row in members if row.layer is not None})
        tensors, parameters = sum(row.tensors for row in members), sum(row.parameters for row in members)
        rows.append([kind, layers or "-", f"{sum(row.slices for row in members):,}", tensors, f"{parameters:,}"])
    output.table(
        ["kind", "layers", "groups", "tensors", "parameters"], rows, right=["layers", "groups", "tensors", "parameters"]
    )
    output.say("(--groups lists every group)")
