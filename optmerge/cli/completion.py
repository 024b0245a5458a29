"""What the shell completes beside verbs and options: runs, presets, drivers, methods. Imports no torch.

    RunFolder = Annotated[Path, typer.Argument(autocompletion=runs)]
    optmerge --install-completion                      # for the shell that it is typed in; bash, zsh and fish

Every function takes the word as far as it is typed, and gives what it may become. Where it gives nothing the shell
completes files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableMapping
from pathlib import Path

KEY = "_OPTMERGE_COMPLETE_KEY"  # what stands before the sign of the word that bash completes
RUNS = "runs"  # where searches land if nothing else is said
DEPTH = 3  # folders within folders that are looked into
FORMATS = ("checkpoint", "mergekit", "coefficients")
KINDS = ("spaces", "objectives", "schedules", "drivers", "methods")
MODES = ("online", "offline", "disabled")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def runs(incomplete: str) -> list[str]:
    """Folders of runs below ``runs/``, or below the folder that is typed, the latest first."""
    typed = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    top = Path(RUNS) if incomplete in ("", ".", "./") or RUNS.startswith(incomplete) else typed
    found = sorted(_runs_below(top.expanduser(), DEPTH), key=lambda folder: folder.stat().st_mtime, reverse=True)
    shown = [str(folder) for folder in found]
    return [name for name in shown if name.startswith(incomplete.removeprefix("./"))]


def settings(incomplete: str) -> list[str]:
    """``KEY=VALUE`` of what has names: drivers, spaces, objectives, schedules, methods."""
    from optmerge.config.drivers import DRIVER_CONFIGS
    from optmerge.presets import PresetKind, preset_names

    kinds: tuple[PresetKind, ...] = ("space", "objective", "schedule", "methods")
    values = {"driver": list(DRIVER_CONFIGS)} | {kind: preset_names(kind) for kind in kinds}
    if KEY in os.environ:
        return _beginning(incomplete, values.get(os.environ[KEY], ()))
    return _beginning(incomplete, [f"{key}={value}" for key, names in values.items() for value in names])


def methods(incomplete: str) -> list[str]:
    """Merging methods, after the last comma of a list."""
    from optmerge.config.methods import METHOD_CONFIGS

    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in METHOD_CONFIGS if name.startswith(last) and name not in taken]


def formats(incomplete: str) -> list[str]:
    """Formats of `optmerge export`."""
    return _beginning(incomplete, FORMATS)


def kinds(incomplete: str) -> list[str]:
    """What `optmerge ls` lists."""
    return _beginning(incomplete, KINDS)


def modes(incomplete: str) -> list[str]:
    """Where W&B logs go."""
    return _beginning(incomplete, MODES)


def dtypes(incomplete: str) -> list[str]:
    """Types of a merged checkpoint."""
    return _beginning(incomplete, DTYPES)


def join_assignments(environment: MutableMapping[str, str]) -> None:
    r"""Undo that bash hands ``KEY=VALUE`` over as three words, and will replace what follows the sign alone.

    >>> asked = {"COMP_WORDS": "optmerge\nsearch\n--set\ndriver\n=\nad", "COMP_CWORD": "5"}
    >>> join_assignments(asked)
    >>> asked["COMP_WORDS"].split("\n")[-1], asked["COMP_CWORD"], asked[KEY]
    ('ad', '3', 'driver')
    """
    if "COMP_WORDS" not in environment:
        return
    words: list[str] = []
    split = environment["COMP_WORDS"].split("\n")[: int(environment.get("COMP_CWORD", "0")) + 1]
    for number, word in enumerate(split):
        if number > 1 and (word == "=" or split[number - 1] == "="):
            words[-1] += word
        else:
            words.append(word)
    if words[-1].startswith("-") and "=" in words[-1]:  # --set=KEY=VALUE
        option, _, value = words.pop().partition("=")
        words += [option, value]
    key, sign, value = words[-1].partition("=")
    if sign:
        environment[KEY], words[-1] = key, value
    environment.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))


def _beginning(incomplete: str, known: Iterable[str]) -> list[str]:
    return [name for name in known if name.startswith(incomplete)]


def _runs_below(folder: Path, depth: int) -> Iterable[Path]:
    """Folders that hold a run: a resolved search file and a manifest, which is written with it."""
    try:
        entries = [
            Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")
        ]
    except OSError:
        return
    for entry in entries:
        if (entry / "search.yaml").is_file() and (entry / "manifest.json").is_file():
            yield entry
        elif depth > 1:
            yield from _runs_below(entry, depth - 1)
