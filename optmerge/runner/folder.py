"""The run directory: who may write into it, and its small files.

search.yaml, manifest.json, trajectory.jsonl, vectors.f64, state/, examples/, recipe.yaml, result.json; views add
report.md, PNGs, optuna.journal and wandb/.

    run = RunFolder.create(Path("runs/first"), config)
    with run.locked():
        run.write_json("result.json", {"status": "running"})
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.atomic import atomic_path, atomic_write, disk_errors
from optmerge.config.load import dump_config, load_config
from optmerge.config.schema import SearchConfig
from optmerge.errors import RunError
from optmerge.records import Vector


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: SearchConfig) -> RunFolder:
        """Claim an empty or new folder for a search.

        Raises:
            RunError: The folder holds something already, or cannot be written.
        """
        cls.require_free(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            atomic_write(path / "search.yaml", dump_config(config))
        return cls(path)

    @staticmethod
    def require_free(path: Path) -> None:
        """Check that a search may use the folder, without touching it.

        Raises:
            RunError: The folder holds something already.
        """
        if (path / "search.yaml").exists():
            raise RunError(
                f"{path} holds another run. Continue it with `optmerge resume {path}`, or give this search a folder of "
                "its own with --output."
            )
        if path.exists() and (not path.is_dir() or any(not _is_left_over(entry) for entry in path.iterdir())):
            raise RunError(
                f"{path} exists and is not empty; a search needs a folder of its own. Choose one with --output."
            )

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            RunError: There is none.
        """
        if not (path / "search.yaml").is_file():
            raise RunError(f"{path} is not a run: it has no search.yaml. `optmerge search FILE` makes one.")
        return cls(path)

    def config(self) -> SearchConfig:
        """The resolved search file."""
        return load_config(self.path / "search.yaml")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run, or None if there is none.

        Raises:
            RunError: The file is damaged.
        """
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as problem:
            raise RunError(f"{self.path / name} is damaged ({problem}). Restore it from a copy.") from None
        return content

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file atomically."""
        atomic_write(self.path / name, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def save_examples(self, record: int | str, scores: Mapping[str, Mapping[str, Vector]]) -> None:
        """Keep the per-example scores of a report, for paired comparisons: keys are "task/metric".

        Args:
            record: Its number in the trajectory, or the name of a leaderboard's row.
            scores: Task -> metric -> float64[n].
        """
        path = self.path / "examples" / f"{record}.npz"
        path.parent.mkdir(exist_ok=True)
        flat = {f"{task}/{name}": values for task, arrays in scores.items() for name, values in arrays.items()}
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.savez_compressed(handle, allow_pickle=False, **flat)

    def load_examples(self, record: int | str) -> dict[str, dict[str, Vector]] | None:
        """The per-example scores of a report, or None."""
        path = self.path / "examples" / f"{record}.npz"
        if not path.exists():
            return None
        scores: dict[str, dict[str, Vector]] = {}
        with np.load(path) as stored:
            for key in stored.files:
                task, name = key.rsplit("/", 1)
                scores.setdefault(task, {})[name] = stored[key]
        return scores

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out while this one searches.

        Raises:
            RunError: Another process holds the run.
        """
        try:
            import fcntl
        except ImportError:  # not a POSIX system: no lock to be had
            yield
            return
        with open(self.path / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"Another process is searching in {self.path}. Wait for it, or watch it with `optmerge status`."
                ) from None
            yield


def _is_left_over(path: Path) -> bool:
    """Whether a file is what a kill leaves between claiming a folder and writing its search file."""
    return path.name.startswith(".search.yaml.tmp-")
