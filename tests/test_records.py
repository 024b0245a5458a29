"""The trajectory's two files, and what may happen to them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from optmerge.errors import RunError
from optmerge.records import INLINE, Record, Trajectory


def record(number: int) -> Record:
    vector = np.arange(INLINE + 1.0) + number
    return Record(number, "search", "cma", "fit", float(number), vector=vector, gradient=-vector)


def write(folder: Path, *records: Record) -> None:
    with closing(Trajectory.open(folder)) as trajectory:
        for each in records:
            trajectory.append(each)


def same(found: list[Record], expected: list[Record]) -> bool:
    pairs = [(a.id, a.vector, a.gradient) for a in found], [(a.id, a.vector, a.gradient) for a in expected]
    return len(found) == len(expected) and all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])  # type: ignore[arg-type]
        for a, b in zip(*pairs, strict=True)
    )


@pytest.mark.parametrize("lost", [1, 8, 8 * INLINE, 8 * 2 * (INLINE + 1)])
def test_a_last_line_whose_vectors_a_power_failure_took_is_torn(
    tmp_path: Path, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    records = [record(number) for number in range(3)]
    write(tmp_path, *records)
    vectors = tmp_path / "vectors.f64"
    whole = vectors.read_bytes(), (tmp_path / "trajectory.jsonl").read_bytes()
    vectors.write_bytes(whole[0][:-lost])
    assert same(Trajectory.read(tmp_path).records, records[:2])
    assert "torn" in caplog.text
    write(tmp_path, records[2])
    assert same(Trajectory.read(tmp_path).records, records)
    assert (vectors.read_bytes(), (tmp_path / "trajectory.jsonl").read_bytes()) == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it stands for a full disk")
@pytest.mark.parametrize("file", ["_lines", "_vectors"])
def test_a_full_disk_is_told_and_what_was_recorded_stays(tmp_path: Path, file: str) -> None:
    records = [record(number) for number in range(2)]
    with closing(Trajectory.open(tmp_path)) as trajectory:
        trajectory.append(records[0])
        getattr(trajectory, file).close()
        setattr(trajectory, file, open("/dev/full", "ab"))  # noqa: SIM115 - the trajectory closes it
        with pytest.raises(RunError, match="the disk is full"):
            trajectory.append(records[1])
    assert same(Trajectory.read(tmp_path).records, records[:1])
    write(tmp_path, records[1])
    assert same(Trajectory.read(tmp_path).records, records)
