"""The peer environment: a folder with a virtual environment of its own, named by $OPTMERGE_PEERS."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ENVIRONMENT = "OPTMERGE_PEERS"


@pytest.fixture(scope="session")
def peer() -> Callable[..., str]:
    """``peer("mergekit-yaml", config, folder)`` runs a program of the peer environment and gives its output."""
    folder = os.environ.get(ENVIRONMENT)
    if not folder:
        pytest.skip(f"${ENVIRONMENT} does not name a peer environment; run `make test-peers`")

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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
