"""SIGKILL at any moment of a merge leaves nothing that loads, or the whole merge.

Merges run in processes forked from a server that has imported everything, so that a kill costs no import.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.big import save_big

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
KILLS = 10


def _merge(recipe: str, to: str, cache: str, last_moment: bool) -> None:
    """Merge in a process of its own; with ``last_moment`` it kills itself instead of renaming the folder."""
    os.environ["OPTMERGE_CACHE"] = cache
    from optmerge.export.background import BackgroundWriter
    from optmerge.export.checkpoint import CheckpointExporter
    from optmerge.merging.merge import completed
    from optmerge.merging.recipe import Recipe, open_recipe

    put = BackgroundWriter._put

    def slowly(self: BackgroundWriter, values: bytes | memoryview) -> None:
        put(self, values)
        time.sleep(0.01)  # so that a watcher on a loaded machine does not come too late

    BackgroundWriter._put = slowly  # type: ignore[method-assign]
    if last_moment:
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    loaded = Recipe.load(Path(recipe))
    family = open_recipe(loaded, relative_to=Path(recipe).parent)
    exporter = CheckpointExporter(shard_bytes=3 * 10**6)
    exporter.export(completed(loaded, family), family, Path(to))


def _start(recipe: Path, to: Path, cache: Path, *, last_moment: bool = False) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.models.llama.modeling_llama", "optmerge.export.api"])
    process = context.Process(target=_merge, args=(str(recipe), str(to), str(cache), last_moment))
    process.start()
    return process


def _written(to: Path) -> int:
    """Bytes of tensors that are in any folder for ``to`` so far."""
    total = 0
    for path in to.parent.glob(f".{to.name}.tmp-*/*.safetensors"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # it was renamed meanwhile
            return sys.maxsize
    return sys.maxsize if to.exists() else total


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors*")}


def test_a_killed_merge_leaves_nothing_that_loads(tmp_path: Path) -> None:
    recipe = save_big(tmp_path / "models", megabytes=24, experts=2)
    cache = tmp_path / "cache"
    process = _start(recipe, tmp_path / "whole", cache)
    process.join()
    assert process.exitcode == 0
    whole = _content(tmp_path / "whole")
    total = sum(map(len, whole.values()))
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    moments = [*generator.integers(0, total, KILLS).tolist(), None]
    killed = 0
    for number, moment in enumerate(moments):
        to = tmp_path / f"{number}" / "merged"
        to.parent.mkdir()
        process = _start(recipe, to, cache, last_moment=moment is None)
        while moment is not None and process.is_alive() and _written(to) < moment:
            time.sleep(0.0001)
        if moment is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        for left in to.parent.iterdir():  # the folder itself, or what was to become it
            if (left / "config.json").exists():
                assert _content(left) == whole, f"killed after {moment} of {total} bytes"
        if process.exitcode:
            assert not to.exists()
    assert process.exitcode == -signal.SIGKILL, "the last one kills itself before the folder appears"
    assert killed >= KILLS // 2, f"only {killed} kills hit, at {moments} of {total} bytes"
