"""Teacher outputs: what each expert says about its own calibration inputs, made once and cached by content.

The expert is put into the resident model by its one-hot row (which copies its tensors), so no second model is ever
loaded. Files are named by the hash of the expert, the data and the tokenizer's ids, the classes kept and the machine's
arithmetic.

    teachers = Teachers.make(problem, progress)
    teacher = teachers.batch("topics", "fit", batch)
"""

from __future__ import annotations

import hashlib
import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from optmerge.atomic import atomic_path
from optmerge.errors import RunFailed
from optmerge.merging.engine import one_hot
from optmerge.models.cache import cache_dir
from optmerge.models.device import out_of_memory, release_memory
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch, TeacherOutputs
from optmerge.records import Progress, SplitName

if TYPE_CHECKING:
    from optmerge.calibration.data import Batch
    from optmerge.runner.problem import Problem

log = logging.getLogger(__name__)

SPLITS: tuple[SplitName, ...] = ("fit", "select", "report")


Files = Mapping[tuple[str, SplitName], Path]
"""Task and split -> the file that holds the teacher's outputs."""


class Teachers:
    """Teacher outputs of every task and split.

    Attributes:
        files: Where they are kept.
    """

    def __init__(
        self, outputs: dict[tuple[str, SplitName], TeacherOutputs], files: Files = MappingProxyType({})
    ) -> None:
        self._outputs = outputs
        self.files = files

    @property
    def nbytes(self) -> int:
        """Memory that the outputs take, in bytes."""
        return sum(outputs.nbytes for outputs in self._outputs.values())

    def batch(self, task: str, split: SplitName, batch: Batch) -> TeacherBatch:
        """The teacher's outputs for one batch, on the outputs' device."""
        return self._outputs[task, split].batch(batch)

    @classmethod
    def make(
        cls, problem: Problem, progress: Progress | None = None, *, splits: Sequence[SplitName] = SPLITS
    ) -> Teachers:
        """Load from the cache, or run the experts that are not in it.

        Raises:
            RunFailed: There is no memory for one example of a task.
        """
        outputs: dict[tuple[str, SplitName], TeacherOutputs] = {}
        files: dict[tuple[str, SplitName], Path] = {}
        total = len(problem.calibration.tasks) * len(splits)
        for task, data in problem.calibration.tasks.items():
            for split in splits:
                path = cache_dir() / "teachers" / f"{_key(problem, task, split)}.safetensors"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    column = problem.column(data.expert)
                    problem.engine.apply(one_hot(problem.space.num_rows, len(problem.directions), column))
                    made = _collect(problem, task, split)
                    with atomic_path(path) as temporary:
                        made.save(temporary)
                # What was just made is read back too, so that a first and a later run see the same bits.
                outputs[task, split] = TeacherOutputs.load(path, device=problem.device)
                files[task, split] = path
                if progress:
                    progress("teachers", len(outputs), total)
        return cls(outputs, files)

    @classmethod
    def load(cls, files: Files, *, device: torch.device) -> Teachers:
        """Outputs that another process has made."""
        return cls({key: TeacherOutputs.load(path, device=device) for key, path in files.items()}, files)


def _collect(problem: Problem, task: str, split: SplitName) -> TeacherOutputs:
    """One expert's outputs; in smaller steps where memory runs out."""
    batch_tokens = problem.config.batch_tokens
    keep = problem.objective.keep(problem.family.num_layers)
    while True:
        try:
            layers = keep.layers_on(split)
            outputs = _outputs(problem, task, split, batch_tokens, layers)
            return TeacherOutputs.collect(outputs, keep, layers=layers)
        except Exception as error:
            if not out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:300]
            traceback.clear_frames(error.__traceback__)  # their variables are activations
        release_memory(problem.device)
        if batch_tokens == 1:
            raise RunFailed(
                f"There is not enough memory to run the expert of task {task!r} on one example of its {split} split: "
                f"{reason}. Set tasks.{task}.max_tokens lower, or use a device with more memory."
            )
        batch_tokens //= 2
        log.warning("memory ran out for the expert of task %s; trying %d tokens in a pass", task, batch_tokens)


def _outputs(
    problem: Problem, task: str, split: SplitName, batch_tokens: int, layers: Sequence[int]
) -> Iterator[tuple[Batch, Outputs]]:
    data = problem.calibration.tasks[task]
    with torch.no_grad():
        for batch in data.splits[split].batches(batch_tokens=batch_tokens):
            moved = batch.to(problem.device)
            yield moved, problem.outputs(task, moved, layers)


def _key(problem: Problem, task: str, split: SplitName) -> str:
    data = problem.calibration.tasks[task]
    keep = problem.objective.keep(problem.family.num_layers)
    facts = [
        problem.family.experts[data.expert].sha256(),
        problem.family.base.sha256(),
        problem.family.heads,
        problem.forward.head_sha256(task),
        data.splits[split].sha256,
        keep.identity(split),
        str(problem.dtype),
        str(problem.device),
        problem.config.batch_tokens,
        torch.__version__,
        torch.get_num_threads(),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
