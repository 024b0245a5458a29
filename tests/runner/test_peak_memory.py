"""Which part of a search raises the memory's peak, and that every record says it."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import psutil
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.records import Trajectory
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.peak_memory import MIB, PeakMemory, peak_bytes
from optmerge.runner.search import search
from tests.zoo import make_zoo, zoo_settings


def test_the_peak_of_the_process_is_in_bytes() -> None:
    held = psutil.Process().memory_info().rss
    assert held <= peak_bytes(torch.device("cpu")) * 1.01 < 2**45  # the kernel counts pages late, by thread


def test_parts_sum_to_what_the_peak_rose() -> None:
    peaks = iter([4 * MIB, 5 * MIB, 5 * MIB, 8 * MIB, 9 * MIB, 2 * MIB])
    peak = PeakMemory(torch.device("cpu"), read=lambda: next(peaks))
    for part in ("driver", "merge", "evaluate", "evaluate", "driver"):  # the last: somebody has reset it
        peak.mark(part)
    assert peak.take() == {"driver": 1.0, "evaluate": 4.0}
    assert peak.take() == {}


def test_every_evaluation_is_recorded_with_what_it_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
    root = make_zoo(tmp_path / "zoo", "bert")
    make = Evaluator.__init__

    def with_a_peak_that_grows(self: Evaluator, *given: object) -> None:
        make(self, *given)  # type: ignore[arg-type]
        number = count()
        self.peak = PeakMemory(torch.device("cpu"), read=lambda: next(number) * MIB)

    monkeypatch.setattr(Evaluator, "__init__", with_a_peak_that_grows)
    settings = zoo_settings(root, budget={"evaluations": 2})
    run = search(build_config(settings, root=tmp_path), root=tmp_path)
    records = Trajectory.read(run.folder).records
    judged = [record for record in records if record.phase in ("search", "select")]
    assert judged
    for record in judged:
        assert record.memory.keys() == {"driver", "merge", "evaluate"}
        assert record.memory["merge"] >= 1.0
