"""``optmerge doctor``: versions, devices, memory, caches, and what is missing for which feature."""

from __future__ import annotations

from optmerge.cli.options import Json
from optmerge.cli.output import Output, size


def doctor(json: Json = False) -> None:
    """Show what this machine has, and lacks for which feature.

    Nothing is asked of the network. For a report of a defect: optmerge doctor --json
    """
    from optmerge.runner.doctor import examine

    found = examine()
    output = Output(json)
    output.facts(found)
    total, free = found.memory
    rows = [
        ("versions", ", ".join(f"{name} {number}" for name, number in found.versions.items())),
        ("device: auto", found.devices[0]),
        ("merges computed by", {"compiled": "compiled C", "triton": "Triton kernels"}.get(found.kernels, "torch")),
        ("memory", f"{size(free)} free of {size(total)}"),
        *((f"disk at {folder}", f"{size(left)} free") for folder, left in found.disk.items()),
        ("caches", f"{size(sum(entry.nbytes for entry in found.caches))} in {found.cache} (optmerge clean)"),
        *((service, "signed in" if known else "not signed in") for service, known in found.accounts.items()),
    ]
    output.table(["this machine", ""], rows)
    output.say()
    features = []
    for name, feature in found.features.items():
        lacking = ", ".join(feature.missing)
        features.append([name, f"missing: {lacking}" if lacking else "ready", feature.command if lacking else ""])
    output.table(["feature", "", "install it with"], features)
    for advice in found.advice:
        output.say(f"\n{advice}")
