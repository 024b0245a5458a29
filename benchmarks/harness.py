"""What all benchmarks share: their options, a folder for their files, the machine's description, and the table.

options = parse(__doc__)
with workspace(options) as work:
    show("Apply", ["K", "ratio"], rows)
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optmerge.tracking.markdown import table

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"mergekit": ROOT / ".venv-peers", "fusionbench": ROOT / ".venv-fusionbench"}
THREADS = 2
"""Threads that every side gets, ours and theirs."""


def parser(text: str | None, *, default: str = "a temporary one, removed at the end") -> argparse.ArgumentParser:
    """Options that every benchmark has; ``default`` says where files go without --work."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--small", action="store_true", help="tiny models: shows that it runs, says nothing about speed")
    made.add_argument("--work", type=Path, help=f"folder for its files; default: {default}")
    return made


@contextmanager
def workspace(options: argparse.Namespace) -> Iterator[Path]:
    """The folder for a benchmark's files, as an absolute path; optmerge's cache is in it, for children too."""
    folder = options.work or Path(tempfile.mkdtemp(prefix="optmerge-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    os.environ["OPTMERGE_CACHE"] = str(folder / "cache")
    try:
        yield folder
    finally:
        if options.work is None:
            shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Variables that a child gets: as many threads as the others, no network."""
    return {
        "OMP_NUM_THREADS": str(THREADS),
        "MKL_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def peer(name: str, program: str = "python") -> str:
    """A program of a peer's environment.

    Raises:
        SystemExit: The environment is not there.
    """
    path = PEERS[name] / "bin" / program
    if not path.exists():
        raise SystemExit(f"There is no {path}. Make the peers' environments first: make bench-env")
    return str(path)


def ours(program: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).with_name(program))


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        SystemExit: Less than ``needed`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"{folder} has {free / 1e9:.0f} GB free, and this needs {needed / 1e9:.0f} GB. Name a folder on another "
            "disk with --work."
        )


def show(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    *,
    threads: int = THREADS,
) -> None:
    """Print a table as Markdown, with the machine and the code that it was measured on."""
    print(f"\n### {title}\n\n{table(list(head), [list(row) for row in rows], left=(0,))}\n")
    for note in [*notes, machine(threads)]:
        print(f"- {note}")
    sys.stdout.flush()


def machine(threads: int = THREADS) -> str:
    """One line: processor, cores, memory, threads of each side, torch, commit."""
    import torch

    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    told = "1 thread" if threads == 1 else f"{threads} threads"
    return (
        f"Machine: {model}, {os.cpu_count()} cores, {total / 2**20:.0f} GiB; {told}; torch {torch.__version__}; "
        f"commit {_commit()}."
    )


def mebibytes(count: float) -> str:
    """A size for a table.

    >>> mebibytes(3 * 2**20)
    '3 MiB'
    """
    return f"{count / 2**20:,.0f} MiB"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short", "HEAD") or "unknown"
    return f"{name} with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else name
