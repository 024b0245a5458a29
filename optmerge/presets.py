"""Preset name -> file: the YAML files of ``search_spaces/`` and its ``methods/``, ``objectives/`` and ``schedules/``.

    path = find_preset("space", "layer-wise")
    preset_names("objective")            # ['accuracy', 'cross-entropy', 'dam', ...]

An installed wheel carries the folders under ``optmerge/data/``; in an editable install they stand beside the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from optmerge.errors import ConfigError, did_you_mean

PresetKind = Literal["space", "methods", "objective", "schedule"]
FOLDERS: dict[PresetKind, str] = {
    "space": "search_spaces",
    "methods": "search_spaces/methods",
    "objective": "objectives",
    "schedule": "schedules",
}
SUFFIXES = (".yaml", ".yml")


def preset_folder(kind: PresetKind, *, package: Path | None = None) -> Path:
    """The folder with the presets of a kind.

    Args:
        kind: ``space``, ``methods``, ``objective`` or ``schedule``.
        package: The package's folder; the one that this module is in by default.

    Raises:
        ConfigError: Neither place has it, so the installation is incomplete.
    """
    package = package or Path(__file__).resolve().parent
    places = (package / "data" / FOLDERS[kind], package.parent / FOLDERS[kind])
    for place in places:
        if place.is_dir():
            return place
    raise ConfigError(
        f"The presets in {FOLDERS[kind]}/ are missing: neither {places[0]} nor {places[1]} exists. "
        "Install optmerge again (pip install --force-reinstall --no-deps optmerge)."
    )


def preset_names(kind: PresetKind) -> list[str]:
    """The names of a kind's presets, sorted."""
    return sorted(path.stem for path in preset_folder(kind).iterdir() if path.suffix in SUFFIXES)


def find_preset(kind: PresetKind, name: str, *, relative_to: Path | None = None) -> Path:
    """The file that a name or a path stands for.

    Args:
        kind: ``space``, ``methods``, ``objective`` or ``schedule``.
        name: A preset's name, or a path ending in ``.yaml`` or ``.yml``.
        relative_to: Folder that a relative path starts from.

    Raises:
        ConfigError: There is no such preset or file; near matches are named.
    """
    if name.endswith(SUFFIXES) or "/" in name:
        path = (relative_to or Path()) / Path(name).expanduser()
        if path.is_file():
            return path
        raise ConfigError(f"{kind} is {name!r}, and there is no file {path}.")
    names = preset_names(kind)
    if name not in names:
        form = "list" if kind in ("schedule", "methods") else "mapping"
        raise ConfigError(
            f"{kind} is {name!r}; expected one of {', '.join(names)}, a path ending in .yaml, or a {form}."
            + did_you_mean(name, names)
        )
    return next(path for path in preset_folder(kind).iterdir() if path.stem == name and path.suffix in SUFFIXES)


def preset_summary(path: Path) -> str:
    """The first sentence of a preset's opening comment; empty when it has none."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    sentence, stop, _ = " ".join(words).partition(". ")
    return sentence + stop.strip()
