"""The peers' environments: folders with virtual environments of their own, named by environment variables."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

MERGEKIT = "OPTMERGE_PEERS"
FUSIONBENCH = "OPTMERGE_FUSIONBENCH"
Peer = Callable[..., str]


@pytest.fixture(scope="session")
def run_in() -> Callable[[str], Peer]:
    """``run_in(variable)("python", "-c", code)`` runs a program of the environment that the variable names."""

    def choose(variable: str) -> Peer:
        folder = os.environ.get(variable)
        if not folder:
            pytest.skip(f"${variable} does not name a peer environment; run `make test-peers`")

        def run(program: str, *arguments: str | Path) -> str:
            ran = subprocess.run(
                [str(Path(folder, "bin", program).absolute()), *map(str, arguments)],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
            return ran.stdout

        return run

    return choose


@pytest.fixture(scope="session")
def peer(run_in: Callable[[str], Peer]) -> Peer:
    """``peer("mergekit-yaml", config, folder)`` runs a program of mergekit's environment and gives its output."""
    return run_in(MERGEKIT)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
