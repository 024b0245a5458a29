"""Which of the merging methods fit a search: by the number of experts, and by what its calibration data can give.

methods, left_out = applicable(config, None, no_labels="no task has a column for them")
left_out["slerp"]            # 'it merges 1 to 2 experts, and there are 4'
"""

from __future__ import annotations

from collections.abc import Sequence

from optmerge.config.methods import METHOD_CONFIGS, MethodSettings
from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError, did_you_mean
from optmerge.merging.directions import known_directions


def applicable(
    config: SearchConfig, names: Sequence[str] | None, *, no_labels: str | None = None
) -> tuple[list[MethodSettings], dict[str, str]]:
    """The methods that fit, at their default settings, and why each of the others does not.

    Args:
        config: Whose experts and tasks count.
        names: Only these methods are looked at; None is all.
        no_labels: Why the labels of the tasks' fit examples cannot be read; None where they can.

    Returns:
        Settings of the methods that fit, and name -> reason of those that do not.

    Raises:
        ConfigError: A name is no method's.
    """
    for name in names or ():
        if name not in METHOD_CONFIGS:
            raise ConfigError(
                f"--methods: there is no method {name!r}; expected some of {', '.join(METHOD_CONFIGS)}."
                f"{did_you_mean(name, METHOD_CONFIGS)}"
            )
    fitting: list[MethodSettings] = []
    left_out: dict[str, str] = {}
    for name, settings in METHOD_CONFIGS.items():
        if names is not None and name not in names:
            continue
        reason = obstacle(config, settings, no_labels)
        if reason is None:
            fitting.append(settings())
        else:
            left_out[name] = reason
    return fitting, left_out


def named_methods(config: SearchConfig) -> dict[str, MethodSettings]:
    """Whole methods that a search file names itself, at settings of its own: other ones, or a user's method.

    Args:
        config: With absolute references; its directions and ``baselines.methods`` count.

    Returns:
        What a search would call it -> its settings.

    Raises:
        ConfigError: A user's method cannot be used, or an expert is called like a method.
    """
    entries = [*config.baselines.methods, *(entry for entry in config.directions if isinstance(entry, MethodSettings))]
    usual = [METHOD_CONFIGS[entry.name]() for entry in entries if entry.name in METHOD_CONFIGS]
    known = known_directions((), [*usual, *entries], list(config.experts))  # type: ignore[list-item]
    return {
        direction.name: direction.config
        for direction in known
        if isinstance(direction.config, MethodSettings) and direction.config not in usual
    }


def obstacle(config: SearchConfig, settings: type[MethodSettings], no_labels: str | None) -> str | None:
    """Why a method cannot be used, or None; see `applicable` for the arguments."""
    facts, count = settings.facts, len(config.experts)
    least, most = facts.experts
    if count < least or (most is not None and count > most):
        wanted = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        return f"it merges {wanted} experts, and there {'is' if count == 1 else 'are'} {count}"
    taught = {task.expert for task in config.tasks.values()}
    idle = [expert for expert in config.experts if expert not in taught]
    if facts.needs and idle:
        return f"it needs inputs of every expert, and no task has the expert {' or '.join(idle)}"
    if facts.labels and no_labels is not None:
        return f"it reads labels ({no_labels})"
    return None
