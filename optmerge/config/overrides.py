"""``--set dotted.key=value``: changes to a search file from the command line.

    override = parse_override("driver.lr=0.02")
    apply_override(data, override, expand)

The value is YAML, so ``false``, ``null``, ``[0, 1]`` and ``{name: cma}`` mean what they mean in the file. A dotted key
goes through lists by position: ``objective.terms.0.temperature=2``. What a key is called is checked when the whole
file is: a misspelt one is an unknown key there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optmerge.config.reading import read_yaml
from optmerge.errors import ConfigError

Expand = Callable[[tuple[str, ...], Any], Any]


@dataclass(frozen=True)
class Override:
    """One ``--set``: where, what, and how the user wrote it."""

    path: tuple[str, ...]
    value: Any
    text: str


def parse_override(text: str) -> Override:
    """Read ``dotted.key=value``.

    Raises:
        ConfigError: There is no ``=``, an empty part in the key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set {text}: expected a dotted key, '=' and a value, like --set driver.lr=0.02.")
    return Override(path, read_yaml(value, source=f"--set {key}"), text)


def apply_override(data: dict[str, Any], override: Override, expand: Expand) -> None:
    """Change ``data`` in place.

    Args:
        data: The search file as plain data.
        override: What to change.
        expand: Called with a path and the value there, before going into it; turns a short form (a preset's name, a
            driver's name, nothing at all) into the mapping or list that it stands for.

    Raises:
        ConfigError: The path goes into a plain value, or past the end of a list.
    """
    node: Any = data
    for depth, part in enumerate(override.path):
        here = ".".join(override.path[:depth])
        last = depth == len(override.path) - 1
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise ConfigError(
                    f"--set {override.text}: {here} is a list of {len(node)}; expected a position from 0 to "
                    f"{len(node) - 1} where {part!r} stands."
                )
            key: Any = int(part)
        elif isinstance(node, dict):
            # The file may have it as a number: a task called 2024 is one key, however it is written.
            key = next((known for known in node if str(known) == part), part)
        else:
            raise ConfigError(f"--set {override.text}: {here} is {node!r}, which has no parts to set.")
        if last:
            node[key] = override.value
            return
        child = node[key] if isinstance(node, list) else node.get(key)
        node[key] = expand(override.path[: depth + 1], child)
        node = node[key]
