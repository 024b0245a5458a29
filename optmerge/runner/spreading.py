"""Which devices a search's model is spread over, and how: from the search file and what the machine has.

    spread = open_spread(config, family, dtype)             # over one device, unless the file asks for more
    devices_of(spread, config.device, 4)                    # [("cuda:0", "cuda:1"), ...] of every worker

The layout is found out once for a run: a resumed search and all workers have the same one, each on its own devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError
from optmerge.models.device import pick_device
from optmerge.models.layout_plan import plan_layout
from optmerge.models.spread import Spread
from optmerge.runner.memory import memory_budget

if TYPE_CHECKING:
    from optmerge.models.family import Family


def open_spread(
    config: SearchConfig,
    family: Family,
    dtype: torch.dtype,
    *,
    devices: Sequence[torch.device] | None = None,
    layout: Mapping[str, int] | None = None,
) -> Spread:
    """Where the model of this process is to be; nothing is allocated.

    Args:
        config: The search.
        family: Base and experts.
        dtype: Of the resident model.
        devices: Those of a worker; None are what the search file says and the machine has.
        layout: What a run has begun with; None lets it be found out.

    Raises:
        ConfigError: There are not enough devices, the model does not fit on them, or the layout cannot be.
        MissingExtraError: accelerate is not installed.
    """
    if devices is None:
        devices = _devices(config)
    if len(devices) == 1:
        return Spread.on(devices[0])
    if layout is None or max(layout.values()) >= len(devices):  # of a machine that has more
        wanted = config.device_map or "balanced"
        room = [memory_budget(config.memory, device) for device in devices]
        layout = plan_layout(family, dtype, wanted if isinstance(wanted, str) else _numbers(wanted), room=room)
    return Spread(tuple(devices), layout)


def devices_of(
    spread: Spread, configured: str, workers: int, *, visible: int | None = None
) -> Sequence[tuple[str, ...]]:
    """The devices of every worker of this machine: all that there are in turn, unless the search names one by number.

    Workers have as many as the search's own model. Where that one is spread, which leaves no room for a second, they
    have the devices behind its own if there are enough. Workers that find none left share them with others.

    Args:
        spread: Of the search's own model.
        configured: ``device`` of the search file.
        workers: How many there are.
        visible: CUDA devices of this machine; None is what torch sees.

    >>> two = Spread((torch.device("cuda", 0), torch.device("cuda", 1)), {"": 1})
    >>> devices_of(two, "auto", 2, visible=4)
    [('cuda:0', 'cuda:1'), ('cuda:2', 'cuda:3')]
    >>> devices_of(two, "auto", 2, visible=6)
    [('cuda:2', 'cuda:3'), ('cuda:4', 'cuda:5')]
    """
    each = len(spread.devices)
    if spread.main.type != "cuda" or ":" in configured:
        return [tuple(map(str, spread.devices))] * workers
    groups = (torch.cuda.device_count() if visible is None else visible) // each
    skipped = int(spread.several and workers < groups)
    return [
        tuple(f"cuda:{(skipped + worker) % groups * each + number}" for number in range(each))
        for worker in range(workers)
    ]


def _devices(config: SearchConfig) -> list[torch.device]:
    """The devices of this process's model, the first one for its inputs."""
    wanted, each = config.device_map, int(config.executor.gpus_per_worker)
    if isinstance(wanted, dict) and "cpu" in wanted.values():
        return [torch.device("cpu")]
    first = pick_device(config.device)
    if wanted is None and each <= 1:
        return [first]
    if first.type != "cuda":
        if wanted is None:  # so many accelerators where there are any
            return [first]
        raise ConfigError(
            f"device_map is {wanted!r}, and this machine has no CUDA device that torch can use. Take device_map out to "
            f"search on {first}."
        )
    count = torch.cuda.device_count()
    needed = each
    if each <= 1:
        needed = 1 + max(_numbers(wanted).values()) if isinstance(wanted, dict) else count
    if needed > count:
        asked = f"executor.gpus_per_worker is {each}" if each > 1 else f"device_map names device {needed - 1}"
        raise ConfigError(
            f"{asked}, and this machine has {count} CUDA device{'' if count == 1 else 's'}, which "
            f"{'is' if count == 1 else 'are'} numbered from 0. Ask for no more than that."
        )
    return [torch.device("cuda", number) for number in range(needed)]


def _numbers(layout: Mapping[str, int | str]) -> dict[str, int]:
    """A mapping's devices, which are numbers where there is more than one."""
    return {module: device for module, device in layout.items() if isinstance(device, int)}
