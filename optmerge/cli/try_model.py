"""``optmerge try RUN [TEXT...]``: ask a run's winner and its experts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from optmerge.cli.options import AllowPickle, Json, RunFolder
from optmerge.cli.output import Output


def try_model(
    run: RunFolder,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="What to ask; lines of stdin if not given.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option("--expert", metavar="NAME", help="Compare with this expert only.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="Longest continuation, for language models.")
    ] = 64,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Classify or continue texts, winner beside experts."""
    from optmerge.errors import ConfigError

    if not texts and sys.stdin.isatty():
        sys.stderr.write("One text a line; end with Ctrl-D.\n")
    asked = texts or [line.strip() for line in sys.stdin if line.strip()]
    if not asked:
        raise ConfigError(f"There is no text to try; give some: optmerge try {run} 'a film to remember'.")
    from optmerge.cli.tryout import Tryout

    answers = list(Tryout.open(run, allow_pickle=allow_pickle).answers(asked, expert=expert, max_new_tokens=max_tokens))
    output = Output(json)
    output.facts({"answers": answers})
    heads = any(answer.head for answer in answers)
    for text in dict.fromkeys(asked):
        output.say(f"> {text}")
        mine = [answer for answer in answers if answer.text == text]
        if any(answer.probability is None for answer in mine):
            for answer in mine:
                output.say(f"  {answer.model}: {answer.says.strip()}")
        else:
            head = [*(["head"] if heads else []), "model", "label", "probability"]
            rows = [
                [*([answer.head] if heads else []), answer.model, answer.says, f"{answer.probability:.3f}"]
                for answer in mine
            ]
            output.table(head, rows, right=["probability"])
        output.say()
