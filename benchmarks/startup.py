"""How long `optmerge --help` takes, beside an interpreter that does nothing.

    make bench-startup

Prints the median of a number of starts of each, after one that warms the file cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STARTS = 10
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "optmerge --help": [sys.executable, "-m", "optmerge", "--help"],
}


def median_seconds(command: list[str]) -> float:
    """The median wall-clock time of a command."""
    times = []
    for _ in range(STARTS + 1):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def main() -> None:
    """Print both times and their ratio."""
    seconds = {name: median_seconds(command) for name, command in COMMANDS.items()}
    for name, value in seconds.items():
        print(f"{name:<16} {1000 * value:6.0f} ms")
    bare, full = seconds.values()
    print(f"{'ratio':<16} {full / bare:6.1f}")


if __name__ == "__main__":
    main()
