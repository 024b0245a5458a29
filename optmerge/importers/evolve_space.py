"""The genome of mergekit-evolve as a search space: the same groups of tensors, by rules that tie them.

A genome has a weight per group of layers, model and filter. Embeddings belong to the first group, everything behind the
layers to the last; a filter is a substring of a tensor's name, and the first that matches counts.

    space, reached = genome_space(genome, tensors)
    space["rules"][0]       # {"match": "model.layers.[0-3].*", "tie": "layers 0-3"}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Any, Literal

from optmerge.errors import ConfigError
from optmerge.importers.evolve_config import Genome

MOST_DEGREES = 8  # of a polynomial of depth


@dataclass(frozen=True, slots=True)
class Tensor:
    """One of the base's parameters.

    Attributes:
        name: The parameter, which rules match.
        disk: Its tensor in the checkpoint, which filters are tested against.
        place: ``before`` the layers, a ``layer``, or ``after`` them.
        layer: Which one; None outside.
    """

    name: str
    disk: str
    place: Literal["before", "layer", "after"]
    layer: int | None = None


def genome_space(genome: Genome, tensors: Sequence[Tensor]) -> tuple[dict[str, Any], list[str]]:
    """The granularity, and the rules or the polynomial that make the genome's groups.

    Args:
        genome: What is searched.
        tensors: All parameters of the base; may be empty where the genome has one group and no filters.

    Returns:
        Settings of `optmerge.config.spaces.SpaceConfig` without bounds and start, and the filters that match nothing.

    Raises:
        ConfigError: The layers cannot be divided into groups of that size.
    """
    filters = genome.filters or []
    size = genome.layer_granularity
    if size < 1 and not filters:
        return {"granularity": "task-wise"}, []
    layers = 1 + max((tensor.layer for tensor in tensors if tensor.layer is not None), default=-1)
    if size >= 1 and (layers == 0 or layers % size):
        raise ConfigError(
            f"genome.layer_granularity is {size} and the models have {layers} layers; mergekit-evolve wants a divisor "
            f"of that: {', '.join(str(n) for n in range(1, layers + 1) if layers % n == 0) or 'none'}."
        )
    groups = layers // size if size >= 1 else 1
    unmatched = [word for word in filters if not any(word in tensor.disk for tensor in tensors)]
    if genome.smooth and groups > 1:
        space: dict[str, Any] = {"granularity": "layer-wise", "polynomial": min(groups - 1, MOST_DEGREES)}
        return space, unmatched
    classes = {tensor.name: _class(tensor, size, layers, filters) for tensor in tensors}
    rules: list[dict[str, Any]] = []
    for word in [None, *reversed(filters)]:  # here the last rule that matches wins, there the first filter
        for number in range(groups):
            members = [tensor for tensor in tensors if classes[tensor.name] == (number, word)]
            title = _title(number, word, size, layers)
            rules += [{"match": match, "tie": title} for match in _patterns(members, tensors, word)]
    return {"granularity": "tensor-wise", "rules": _checked(rules, classes, size, layers)}, unmatched


def _class(tensor: Tensor, size: int, layers: int, filters: Sequence[str]) -> tuple[int, str | None]:
    """A tensor's group of layers and its filter."""
    word = next((each for each in filters if each in tensor.disk), None)
    if size < 1 or tensor.place == "before":
        return 0, word
    if tensor.layer is None:
        return layers // size - 1, word
    return tensor.layer // size, word


def _title(number: int, word: str | None, size: int, layers: int) -> str:
    """What a variable is called; signs that have a meaning in names are left out."""
    first, last = (number * size, (number + 1) * size - 1) if size >= 1 else (0, layers - 1)
    which = f"layers {first}-{last}" if first != last else f"layer {first}"
    plain = "".join("." if sign in "/[]" else sign for sign in word or "")
    return f"{which} {plain}" if word else which


def _patterns(members: Sequence[Tensor], tensors: Sequence[Tensor], word: str | None) -> Iterator[str]:
    """Globs for the layers of a group, and the names of what is outside."""
    within = [tensor for tensor in members if tensor.layer is not None]
    yield from (_escaped(tensor.name) for tensor in members if tensor.layer is None)
    stems: dict[str, list[int]] = {}
    for tensor in within:
        stem, sign, _ = tensor.name.partition(f".{tensor.layer}.")
        if not sign:
            yield _escaped(tensor.name)
        elif tensor.layer not in stems.setdefault(stem, []):
            stems[stem].append(tensor.layer or 0)
    for stem, numbers in stems.items():
        for digits in _ranges(numbers):
            yield f"{_escaped(stem)}.{digits}.*" if word is None else f"{_escaped(stem)}.{digits}.*{_escaped(word)}*"


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Layers as globs: ``[0-3]``, ``1[0-5]``; consecutive ones that differ in their last digit only."""
    for tens, run in groupby(sorted(numbers), key=lambda number: number // 10):
        last = [number % 10 for number in run]
        start = str(tens) if tens else ""
        whole = last == list(range(last[0], last[-1] + 1))
        if whole and len(last) > 1:
            yield f"{start}[{last[0]}-{last[-1]}]"
        else:
            yield from (f"{start}{digit}" for digit in last)


def _escaped(text: str) -> str:
    return text.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def _checked(
    rules: list[dict[str, Any]], classes: Mapping[str, tuple[int, str | None]], size: int, layers: int
) -> list[dict[str, Any]]:
    """The rules that match something, and one by name for every parameter that they put into another group."""
    found = [rule for rule in rules if any(fnmatchcase(name, rule["match"]) for name in classes)]
    for name, (number, word) in classes.items():
        title = _title(number, word, size, layers)
        won = next((rule["tie"] for rule in reversed(found) if fnmatchcase(name, rule["match"])), None)
        if won != title:
            found.append({"match": _escaped(name), "tie": title})
    return found
