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

seen = []
merge(sys.argv[1], sys.argv[2], progress=lambda stage, done, total: seen.append(anonymous()))
print(json.dumps([len(seen), max(seen)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_grows_neither_with_the_model_nor_with_the_experts(tmp_path: Path) -> None:
    samples, peaks = [], []
    for n, (size, experts) in enumerate([(48, 2), (144, 2), (48, 8)]):
        recipe = save_big(tmp_path / str(n), megabytes=size, experts=experts)
        for turn in ("first", "second"):  # the first fills the caches; a process each, so that nothing is left over
            command = [sys.executable, "-c", MEASURE, str(recipe), str(tmp_path / f"{n}-{turn}")]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        sample, peak = json.loads(done.stdout)
        samples.append(sample)
        peaks.append(peak)
    assert min(samples) > 3
    # In MB. How many of the writer's three buffers of 8 MiB are ever touched depends on timing; the larger models have
    # 96 more each, the further experts 288 together.
    assert max(peaks) - min(peaks) < 3 * 8.4, peaks
