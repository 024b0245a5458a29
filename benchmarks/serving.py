"""A worker's loop: words on standard input, one line of JSON for each on standard output (see `worker.Worker`).

It imports nothing but the standard library, since workers also run in the peers' environments.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def serve(answers: Mapping[str, Callable[[], Any]]) -> None:
    """Answer words until the input ends; each answer is said with the seconds that it took."""
    for line in sys.stdin:
        begun = time.perf_counter()
        value = answers[line.strip()]()
        print(json.dumps({"value": value, "seconds": time.perf_counter() - begun}), flush=True)
