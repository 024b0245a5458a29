"""The rules of a search space: what they make of each coefficient, and groups that no rule divides.

groups = split_by_rules(groups, roles, config.rules)
settled = settle(config, group, "sentiment", roles, used)       # settled.freeze, settled.bounds, settled.start
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from optmerge.config.spaces import RuleConfig, SpaceConfig
from optmerge.errors import ConfigError, did_you_mean
from optmerge.space.groups import RoleLike, TensorGroup

ROLE_KINDS = ("embedding", "attention", "mlp", "norm", "final-norm", "head", "other", "vision", "connector")


class Settled(NamedTuple):
    """What the rules make of a group's coefficient of one direction.

    Attributes:
        freeze: Its value where it is not searched.
        bounds: Of its variable.
        start: Of its variable; a text where it is not known before the search begins.
        tie: What its variable is called, where all groups of that name have one.
    """

    freeze: float | None
    bounds: tuple[float, float]
    start: float | str
    tie: str | None = None


def settle(
    config: SpaceConfig, group: TensorGroup, direction: str, roles: Mapping[str, RoleLike], used: list[bool]
) -> Settled:
    """Apply the rules that match, the last one winning; they are marked in ``used``."""
    freeze: float | None = None
    bounds = config.bounds
    start = config.start
    tie: str | None = None
    for number, rule in enumerate(config.rules):
        # A group never straddles a rule, so its first parameter stands for all.
        if not (_matches(rule, group.parameters[0], roles) and fnmatch.fnmatchcase(direction, rule.direction)):
            continue
        used[number] = True
        if rule.freeze is not None or rule.bounds is not None or rule.start is not None:
            freeze = rule.freeze  # a later rule with bounds or a start makes a frozen coefficient a variable again
        bounds = rule.bounds or bounds
        start = rule.start if rule.start is not None else start
        tie = rule.tie or tie
    return Settled(freeze, bounds, start, tie)


def require_used(
    rules: Sequence[RuleConfig], used: Sequence[bool], roles: Mapping[str, RoleLike], directions: Sequence[str]
) -> None:
    """Refuse rules that match nothing.

    Raises:
        ConfigError: There is one.
    """
    for number, rule in enumerate(rules):
        if not used[number] and not rule.optional:
            raise ConfigError(
                f"space.rules.{number} matches nothing: match {rule.match!r}, direction {rule.direction!r}. "
                f"Use a role ({', '.join(ROLE_KINDS)}) or a glob over parameter names such as {next(iter(roles))!r}; "
                f"directions are {', '.join(directions)}."
                + (did_you_mean(rule.match, [*ROLE_KINDS, *roles]) if "*" not in rule.match else "")
            )


def require_ties_apart(rules: Sequence[RuleConfig], groups: Sequence[TensorGroup]) -> None:
    """Refuse a tie that is called like a group: their variables would have the same name.

    Raises:
        ConfigError: There is one.
    """
    names = {group.name for group in groups}
    for number, rule in enumerate(rules):
        if rule.tie in names:
            raise ConfigError(
                f"space.rules.{number}.tie is {rule.tie!r}, and a group of this space is called so too. Give the tie "
                "another name."
            )


def split_by_rules(
    groups: tuple[TensorGroup, ...], roles: Mapping[str, RoleLike], rules: Sequence[RuleConfig]
) -> tuple[TensorGroup, ...]:
    """Split groups that a rule matches only in part, so that every group obeys exactly one set of rules."""
    result: list[TensorGroup] = []
    for group in groups:
        parts: dict[tuple[bool, ...], list[str]] = {}
        for parameter in group.parameters:
            parts.setdefault(tuple(_matches(rule, parameter, roles) for rule in rules), []).append(parameter)
        if len(parts) == 1:
            result.append(group)
            continue
        for signature, parameters in parts.items():
            hits = [rules[number].match for number, hit in enumerate(signature) if hit]
            kinds = {roles[parameter].kind for parameter in parameters}
            name = "+".join([group.name, *hits]) if hits else group.name
            result.append(
                TensorGroup(name, tuple(parameters), group.layer, kinds.pop() if len(kinds) == 1 else group.kind)
            )
    return tuple(result)


def _matches(rule: RuleConfig, parameter: str, roles: Mapping[str, RoleLike]) -> bool:
    return rule.match in (roles[parameter].kind, roles[parameter].part) or fnmatch.fnmatchcase(parameter, rule.match)
