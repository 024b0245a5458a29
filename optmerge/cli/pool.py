"""``optmerge pool FILE --keep N``: which experts matter, and a search file with those."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optmerge.cli.options import AllowPickle, Json, Limit, SearchFile, Sets, Verbose, overrides
from optmerge.cli.output import Output

if TYPE_CHECKING:
    from optmerge.runner.pool import Pool


def pool(
    file: SearchFile,
    keep: Annotated[
        int | None, typer.Option("--keep", metavar="N", min=1, help="Write a search with N experts.")
    ] = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Points at which the oracle chooses; a gradient each.")
    ] = 20,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="The new search file; beside FILE, as FILE-pool.yaml.")
    ] = None,
    drop_tasks: Annotated[
        bool, typer.Option("--drop-tasks", help="A task may go with its expert; otherwise experts of tasks stay.")
    ] = False,
    sets: Sets = None,
    limit: Limit = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Rank the experts of a pool, keep the N that matter.

    A short Frank-Wolfe search from the base shows how often, where and how strongly its oracle picks each of them.
    """
    from optmerge.config.load import load_config

    config = load_config(file, overrides=overrides(sets, limit=limit, allow_pickle=allow_pickle))
    path = to or file.with_name(f"{file.stem}-pool.yaml")
    if keep is not None:
        _check(file, path, keep, len(config.experts), [] if drop_tasks else [t.expert for t in config.tasks.values()])
    from optmerge.cli.progress import progress_bar
    from optmerge.cli.running import configure_logging, interruptible

    configure_logging(verbose=verbose)
    from optmerge.runner.pool import measure_pool
    from optmerge.tracking.pool import HEAD, pool_rows, write_pool

    output = Output(json)
    with progress_bar() as progress, interruptible(f"optmerge pool {file}") as stop:
        found = measure_pool(config, root=file.parent, rounds=rounds, progress=progress, stop=stop)
    written = write_pool(found)
    kept = None if keep is None else _chosen(found, keep, drop_tasks=drop_tasks)
    if kept is not None:
        _write(file, path, kept)
    output.facts({"pool": found, "kept": kept, "file": None if kept is None else path})
    output.table(HEAD, pool_rows(found), right=[*HEAD[:1], *HEAD[2:6]])
    output.say(
        f"\nThe oracle chose at {found.points} points; in {100 * found.none_picked:.0f} % of its choices no expert."
    )
    output.say(f"By layer:  {written} and pool.png beside it")
    if kept is not None:
        output.say(f"Kept:      {', '.join(kept)}")
        output.say(f"Next:      optmerge search {path}")


def _chosen(found: Pool, keep: int, *, drop_tasks: bool) -> list[str]:
    """The experts that stay, by rank; those of tasks come first unless they may go."""
    ranked = [expert.name for expert in found.experts]
    first = [] if drop_tasks else [expert.name for expert in found.experts if expert.tasks]
    chosen = [*first, *(name for name in ranked if name not in first)][:keep]
    return [name for name in ranked if name in chosen]


def _check(file: Path, path: Path, keep: int, experts: int, needed: list[str]) -> None:
    """What can be refused before anything is measured."""
    from optmerge.errors import ConfigError

    if keep > experts:
        raise ConfigError(f"--keep is {keep}, and {file} has {experts} experts; expected 1 to {experts}.")
    if keep < len(set(needed)):
        raise ConfigError(
            f"--keep is {keep}, and the tasks of {file} name {len(set(needed))} experts, which are their teachers "
            f"({', '.join(dict.fromkeys(needed))}). Keep that many or more, or let tasks go with --drop-tasks."
        )
    if path.exists():
        raise ConfigError(f"{path} exists; name another file with --to, or remove it.")
    if path.resolve().parent != file.resolve().parent:
        raise ConfigError(
            f"--to is {path}, which is not in the folder of {file}; paths in a search file are relative to its folder, "
            f"so name a file in {file.parent}."
        )


def _write(file: Path, path: Path, kept: list[str]) -> None:
    """Write the search file with the kept experts, checked like any other."""
    import yaml

    from optmerge.atomic import atomic_write
    from optmerge.config.load import build_config, read_mapping
    from optmerge.config.pruning import with_experts

    made: dict[str, Any] = with_experts(read_mapping(file), kept)
    build_config(made, root=path.parent, source=str(path))
    text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=120)
    atomic_write(path, f"# {file.name} with the experts that `optmerge pool --keep {len(kept)}` kept.\n{text}")
