"""A merge's anonymous memory depends neither on the model's size nor on the number of experts.

Mapped weights count as files, so what is measured is what the merge itself holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.big import save_big

MEASURE = """
import json, sys
from pathlib import Path
from optmerge.export.api import merge

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000

peaks = []
for recipe in sys.argv[1:]:
    seen = []
    merge(recipe, Path(recipe).parent / "merged", progress=lambda stage, done, total: seen.append(anonymous()))
    peaks.append((len(seen), max(seen)))
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_grows_neither_with_the_model_nor_with_the_experts(tmp_path: Path) -> None:
    made = [(48, 2), (48, 2), (144, 2), (48, 8)]  # the first one brings the imports and the buffers
    recipes = [save_big(tmp_path / str(n), megabytes=size, experts=k) for n, (size, k) in enumerate(made)]
    command = [sys.executable, "-c", MEASURE, *map(str, recipes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    samples, peaks = zip(*json.loads(done.stdout), strict=True)
    assert min(samples) > 3
    # In MB. Allocators keep some 10 more of every merge; holding the larger model would take 96, the experts 288.
    assert max(peaks[2:]) - max(peaks[:2]) < 48, peaks
