"""Settings that spread one model over several devices: ``device_map``, and ``executor.gpus_per_worker`` above 1.

    device_map: balanced
    executor: {workers: 4, gpus_per_worker: 2}

A mapping says for prefixes of modules which of a worker's accelerators has them, as in transformers:
``{model.embed_tokens: 0, model.layers.0: 0, model.layers.1: cuda:1, "": 1}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from optmerge.config.base import named

WAYS = ("auto", "balanced", "sequential")


def _numbered(value: object) -> object:
    """A mapping's devices as numbers, or cpu; refuses what is no device, and models that are partly on the CPU.

    >>> _numbered({"encoder": "cuda:1", "": 0})
    {'encoder': 1, '': 0}
    """
    if value is None or value in WAYS:
        return value
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"device_map is {value!r}; expected null, {', '.join(WAYS)}, or a mapping of modules to devices, such as "
            "{model.embed_tokens: 0, model.layers: 1, lm_head: 1}"
        )
    found: dict[str, int | str] = {}
    for module, device in value.items():
        match = re.fullmatch(r"(?:cuda:)?(\d+)", str(device))
        if match is None and device != "cpu":
            raise ValueError(
                f"device_map puts {module!r} on {device!r}; expected the number of an accelerator (0, 1 or cuda:1), or "
                "cpu for all modules. Every candidate rewrites the weights, so that none can be left on the disk"
            )
        found[str(module)] = "cpu" if match is None else int(match[1])
    if "cpu" in found.values() and len(set(found.values())) > 1:
        off = next(module for module, device in found.items() if device == "cpu")
        raise ValueError(
            f"device_map puts {off!r} on the CPU and other modules on accelerators. Every candidate rewrites the "
            "weights, so that all of them must be where they are used: take more accelerators, or cpu for all"
        )
    return found


DeviceMap = Annotated[
    Literal["auto", "balanced", "sequential"] | dict[str, int | Literal["cpu"]], BeforeValidator(_numbered)
]


def device_map_problems(data: Mapping[str, Any]) -> list[str]:
    """What disagrees between ``device_map``, ``device`` and ``executor``, a sentence or two each.

    Args:
        data: A search as plain data; parts that are malformed are passed over.

    >>> device_map_problems({"device_map": "auto", "device": "cuda:1"})[0][:42]
    "device_map is 'auto', and device is 'cuda:"
    """
    device, layout = data.get("device", "auto"), data.get("device_map")
    executor = named(data.get("executor"))
    executor = executor if isinstance(executor, Mapping) else {}
    each = executor.get("gpus_per_worker", 1)
    each = each if isinstance(each, int | float) else 1
    if each > 1 and each != int(each):
        return [
            f"executor.gpus_per_worker is {each:g}; above 1 a worker's model is spread over whole accelerators. Set it "
            f"to {int(each)} or {int(each) + 1}."
        ]
    on_cpu = isinstance(layout, Mapping) and "cpu" in layout.values()
    if on_cpu:
        if device in ("auto", "cpu") and each <= 1:
            return []
        other = f"device is {device!r}" if each <= 1 else f"executor.gpus_per_worker is {each:g}"
        return [f"device_map puts the model on the CPU, and {other}. Take one of them out."]
    if layout is None and each <= 1:
        return []
    asked = f"executor.gpus_per_worker is {each:g}" if layout is None else f"device_map is {layout!r}"
    problems = []
    if device not in ("auto", "cuda"):
        problems.append(
            f"{asked}, and device is {device!r}: a model that is spread over several CUDA devices is on no single one. "
            f"Set device: auto, or take {'executor.gpus_per_worker' if layout is None else 'device_map'} out."
        )
    alone = executor.get("name", "local") == "local" and executor.get("workers", 1) == 1
    if layout is not None and each <= 1 and not (alone and executor.get("timeout") is None):
        problems.append(
            f"device_map is {layout!r}, and executor.gpus_per_worker is {each:g}: a worker's model has one "
            "accelerator. Set executor.gpus_per_worker to the number that every worker is to have."
        )
    if isinstance(layout, Mapping) and each > 1:
        far = [f"{module!r} on {n}" for module, n in layout.items() if isinstance(n, int) and n >= each]
        if far:
            problems.append(
                f"device_map puts {far[0]}, and with executor.gpus_per_worker: {each:g} a worker's devices have the "
                f"numbers 0 to {int(each) - 1}."
            )
    return problems
