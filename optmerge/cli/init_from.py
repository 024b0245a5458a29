"""``optmerge init --from-...``: what other tools have, as a recipe or a search file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.cli.output import Output

if TYPE_CHECKING:
    from optmerge.importers.translation import Translation


@dataclass(frozen=True)
class Origin:
    """One of the options of ``init`` that name a file from elsewhere.

    Attributes:
        option: How it is called.
        file: The file.
        to: What is written where nothing else is named.
        then: The command that comes next; ``{}`` is the file.
    """

    option: str
    file: Path
    to: str
    then: str


def origin_of(mergekit: Path | None, evolve: Path | None, adamerging: Path | None) -> Origin | None:
    """Which of the options was given.

    Raises:
        ConfigError: More than one was.
    """
    from optmerge.errors import ConfigError

    merge = "optmerge merge {} --to merged"
    given = [
        Origin(option, file, to, then)
        for option, file, to, then in (
            ("--from-mergekit", mergekit, "recipe.yaml", merge),
            ("--from-mergekit-evolve", evolve, "search.yaml", "optmerge validate {}"),
            ("--from-adamerging", adamerging, "recipe.yaml", merge),
        )
        if file is not None
    ]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(each.option for each in given)} were given; one file is made from one of them."
        )
    return given[0] if given else None


def write_translation(
    origin: Origin, to: Path, *, base: str | None, experts: Mapping[str, str], allow_pickle: bool, output: Output
) -> None:
    """Translate, write the file, and say what became of every field.

    Raises:
        ConfigError: The source is wrong, or a recipe cannot say the same.
        ModelError: A model is missing or does not fit.
    """
    from optmerge.atomic import atomic_write
    from optmerge.errors import ConfigError

    importers: dict[str, Callable[[], Translation]] = {
        "--from-mergekit": lambda: _recipe(origin.file, to, allow_pickle),
        "--from-mergekit-evolve": lambda: _search(origin.file, to, allow_pickle),
        "--from-adamerging": lambda: _coefficients(origin.file, to, base, experts, allow_pickle),
    }
    if origin.option != "--from-adamerging" and (base is not None or experts):
        raise ConfigError(f"{origin.option} takes the models from its file. Leave --base and --expert out.")
    translation = importers[origin.option]()
    if to.parent != Path():
        to.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(to, translation.text)
    output.facts({"file": to, "carried": translation.notes.carried, "left": translation.notes.left})
    for line in translation.notes.lines():
        output.say(line)
    output.say(f"Wrote {to}. Next: {origin.then.format(to)}")
    if origin.to == "recipe.yaml":
        output.say(f"A search over the same models starts there with --set space.start={to}")


def _recipe(file: Path, to: Path, allow_pickle: bool) -> Translation:
    from optmerge.importers.mergekit import recipe_from_mergekit

    return recipe_from_mergekit(file, to=to, allow_pickle=allow_pickle)


def _search(file: Path, to: Path, allow_pickle: bool) -> Translation:
    from optmerge.importers.evolve import search_from_evolve

    return search_from_evolve(file, to=to, allow_pickle=allow_pickle)


def _coefficients(
    file: Path, to: Path, base: str | None, experts: Mapping[str, str], allow_pickle: bool
) -> Translation:
    from optmerge.errors import ConfigError
    from optmerge.importers.adamerging import recipe_from_adamerging

    if base is None or not experts:
        raise ConfigError(
            "--from-adamerging has numbers only. Name the models too, the experts in the order in which they were "
            "merged: --base MODEL --expert cars=MODEL --expert dtd=MODEL"
        )
    return recipe_from_adamerging(file, base=base, experts=experts, to=to, allow_pickle=allow_pickle)
