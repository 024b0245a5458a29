"""The sampler sees what a process and its children allocate, and not what they map."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.memory import anonymous, family_of, run_measured

MIB = 2**20
HOLD = "import time; block = bytearray({mib} << 20); block[::4096] = b'x' * len(block[::4096]); time.sleep(0.2)"


def peak(code: str) -> float:
    return run_measured([sys.executable, "-c", code]).peak / MIB


def test_the_peak_grows_by_what_is_allocated() -> None:
    assert peak(HOLD.format(mib=164)) - peak(HOLD.format(mib=100)) == pytest.approx(64, abs=4)


def test_children_are_counted() -> None:
    alone = peak(HOLD.format(mib=64))
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD.format(mib=64)!r}])"
    assert peak(child) > alone


def test_a_fork_that_runs_no_program_does_not_count_its_parents_pages_again() -> None:
    hold = HOLD.format(mib=64)
    assert peak(f"import os; {hold}; os.fork(); time.sleep(0.2)") < peak(hold) + 32


def test_mapped_files_are_not_counted(tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    file.write_bytes(b"x" * (64 * MIB))
    code = (
        f"import mmap, time; file = open({str(file)!r}, 'rb'); "
        "view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); sum(view[::4096]); time.sleep(0.2)"
    )
    assert peak(code) < 40


def test_output_comes_back_and_failures_say_what_was_written() -> None:
    assert run_measured([sys.executable, "-c", "print('said')"]).output == "said\n"
    with pytest.raises(SystemExit, match="ended with 3:\nwhy"):
        run_measured([sys.executable, "-c", "import sys; sys.stderr.write('why'); sys.exit(3)"])


def test_the_seconds_of_processors_are_of_work_and_not_of_waiting() -> None:
    work = "import time\nwhile time.process_time() < 0.5: pass"
    assert run_measured([sys.executable, "-c", work]).processor >= 0.5
    waited = run_measured([sys.executable, "-c", "import time; time.sleep(1)"])
    assert waited.processor < 0.5 < waited.seconds


def test_a_process_that_has_ended_counts_nothing() -> None:
    impossible = 2**22 + 1  # above the largest process id of Linux
    assert anonymous(impossible) == 0
    assert family_of(impossible) == [impossible]
