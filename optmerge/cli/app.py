"""Puts the verbs together.

make_app()(["validate", "search.yaml"])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from optmerge.cli import (
    baseline,
    clean,
    compare,
    dashboard,
    demo,
    doctor,
    explain,
    export,
    front,
    init,
    leaderboard,
    ls,
    merge,
    plan,
    pool,
    push,
    report,
    resume,
    schema,
    search,
    status,
    sync,
    try_model,
    validate,
)
from optmerge.cli.examples import epilog

# "\\b" keeps the lines of a paragraph as they are.
EPILOG = """A search in four steps:

\b
  optmerge init search.yaml    write a commented search file
  optmerge plan search.yaml    what it will cost
  optmerge search search.yaml  run it
  optmerge export RUN --format checkpoint --to merged"""

# In the order of use, which is the order that --help lists them in.
VERBS: dict[str, Callable[..., None]] = {
    "init": init.init,
    "ls": ls.ls,
    "validate": validate.validate,
    "plan": plan.plan,
    "pool": pool.pool,
    "baseline": baseline.baseline,
    "search": search.search,
    "resume": resume.resume,
    "status": status.status,
    "report": report.report,
    "explain": explain.explain,
    "front": front.front,
    "compare": compare.compare,
    "leaderboard": leaderboard.leaderboard,
    "dashboard": dashboard.dashboard,
    "sync": sync.sync,
    "export": export.export,
    "push": push.push,
    "merge": merge.merge,
    "try": try_model.try_model,
    "demo": demo.demo,
    "doctor": doctor.doctor,
    "schema": schema.schema,
    "clean": clean.clean,
}


def make_app() -> typer.Typer:
    """The typer application with every verb."""
    # Plain help: it is ASCII, and formatting it with rich would double the time that it takes.
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=EPILOG, invoke_without_command=True)(_root)
    for name, verb in VERBS.items():
        app.command(name, epilog=epilog(name))(verb)
    return app


def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Search for model-merging recipes: one model that keeps what every expert knows."""
    if version:
        import optmerge

        typer.echo(optmerge.__version__)
        raise typer.Exit()
