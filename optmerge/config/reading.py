"""YAML text -> plain data, with the surprises of YAML 1.1 taken out.

    data = read_yaml(text, source="search.yaml")

A key that stands twice is refused (PyYAML would keep the last one), ``1e-3`` is a number, and only ``true`` and
``false`` are booleans, so that a label may be called ``no``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from optmerge.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads scalars like YAML 1.2 and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[object, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            line = key_node.start_mark.line + 1
            if key in first:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice, first on line {first[key]}", key_node.start_mark
                )
            first[key] = line
        return super().construct_mapping(node, deep=deep)


_WITHOUT = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _WITHOUT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


def read_yaml(text: str, *, source: str) -> Any:
    """Parse one YAML document.

    Args:
        text: The document.
        source: What to call it in an error, e.g. the file's path.

    Raises:
        ConfigError: It is not YAML, or a key stands twice; the message has the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        shown = ""
        if mark and mark.line < len(text.splitlines()):
            shown = f"\n    {text.splitlines()[mark.line].rstrip()}\n    {' ' * mark.column}^"
        raise ConfigError(f"{source}{where}: {_plain(error)}.{shown}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}.") from None


def _plain(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's reason, with advice for what people stumble over."""
    problem = error.problem or "not YAML"
    if "mapping values are not allowed" in problem:
        return "a ': ' where no key can be; quote the value if it contains one"
    if "found character '\\t'" in problem:
        return "a tab; YAML indents with spaces"
    return f"{problem} {error.context}" if error.context else problem
