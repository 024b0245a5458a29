"""Statistics of the experts on their own calibration inputs, made once and cached by content.

Each expert is put into the resident model, so that no second model is ever loaded, and is given the fit inputs of the
tasks that name it. No label is seen, but for the statistics of a loss on labels, which have a split of their own for
that (`TaskData.labelled`).

    statistics = ExpertStatistics(config, family, calibration, device=device, dtype=dtype)
    statistics.collect({"grams"}, resident, progress)
    statistics.statistic("grams", "topics", "bert.encoder.layer.0.output.dense.weight")      # fp32[d_in, d_in], mapped
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optmerge.config.methods import Need
from optmerge.config.methods.base import LABELLED
from optmerge.merging.methods import build_method
from optmerge.merging.parts import Parts, write_parts
from optmerge.merging.recipe import Direction
from optmerge.merging.statistics import Inputs, collect_grams
from optmerge.models.cache import cache_dir
from optmerge.runner.forward import Forward, tensor_sha256
from optmerge.runner.gradients import ExpertGradients
from optmerge.runner.layerwise import MERGED_GRAMS, ExpertRun, LayerwiseMerge
from optmerge.runner.logit_distance import logit_distances

if TYPE_CHECKING:
    from optmerge.calibration.data import Calibration, Split
    from optmerge.calibration.task_data import TaskData
    from optmerge.config.schema import SearchConfig
    from optmerge.models.family import Family
    from optmerge.models.resident import ResidentModel
    from optmerge.records import Progress


class ExpertStatistics:
    """What calibration data say about every expert; see `optmerge.merging.models_view.Statistics`.

    Args:
        config: The search.
        family: Base and experts.
        calibration: Has a task of every expert.
        device: Where the resident model is.
        dtype: Of the resident model.
        heads: Task -> its zero-shot head, see `Forward`; Gram matrices need none.
    """

    def __init__(
        self,
        config: SearchConfig,
        family: Family,
        calibration: Calibration,
        *,
        device: torch.device,
        dtype: torch.dtype,
        heads: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._config = config
        self._family = family
        self._calibration = calibration
        self._device = device
        self._dtype = dtype
        self._heads = dict(heads or {})
        self._parts: dict[tuple[Need, str], Parts] = {}
        self._resident: ResidentModel | None = None

    def key(self, needs: Collection[Need]) -> str:
        """A hash of the data and of everything else that these statistics depend on."""
        keys = [self._key(need, expert) for need in sorted(needs) for expert in self._family.experts]
        return hashlib.sha256(json.dumps(keys).encode()).hexdigest()

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        """See `optmerge.merging.methods.base.Models.statistic`. `collect` comes first."""
        parts = self._parts[need, expert]
        return parts.read(name) if name in parts else None

    def collect(self, needs: Collection[Need], resident: ResidentModel, progress: Progress | None = None) -> None:
        """Open what is in the cache, and run the experts for what is not in it.

        Args:
            needs: The statistics that are wanted.
            resident: Holds any values afterwards.
            progress: Told of experts.

        Raises:
            ModelError: A statistic is not finite.
            RunFailed: There is not enough memory.
            RunError: The disk refuses.
        """
        self._resident = resident
        wanted = [(need, expert) for need in sorted(needs) if need != MERGED_GRAMS for expert in self._family.experts]
        for done, (need, expert) in enumerate(wanted):
            folder = self._folder(need, expert)
            if not folder.is_dir():
                write_parts(folder, self._measured(need, resident, expert))
            self._parts[need, expert] = Parts(folder)
            if progress:
                progress("statistics", done + 1, len(wanted))

    def layer_by_layer(self) -> LayerwiseMerge:
        """A merge in the resident model, and what depends on it. `collect` comes first."""
        assert self._resident is not None, "statistics are collected before a method is made"
        runs = {expert: self._run(self._resident, expert) for expert in self._family.experts}
        return LayerwiseMerge(self._family, self._resident, runs, device=self._device)

    def stream(self, resident: ResidentModel, expert: str) -> Iterator[dict[str, torch.Tensor]]:
        """One expert's Gram matrices, as many at a time as one pass gathers: from the cache, or measured and not kept.

        Args:
            resident: Holds any values afterwards.
            expert: Whose.

        Raises:
            ModelError: A matrix is not finite.
            RunFailed: There is not enough memory.
        """
        folder = self._folder("grams", expert)
        if not folder.is_dir():
            yield from self._measured("grams", resident, expert)
            return
        parts = Parts(folder)
        for name in self._family.parameters:
            if name in parts:
                yield {name: parts.read(name)}

    def _measured(self, need: Need, resident: ResidentModel, expert: str) -> Iterator[dict[str, torch.Tensor]]:
        """One expert's statistics of one kind, some at a time."""
        run = self._run(resident, expert)
        with run.enough_memory():
            for part in self._gathered(need, resident, run):
                yield run.finite(need, part)
                del part  # before the next one is gathered

    def _gathered(self, need: Need, resident: ResidentModel, run: ExpertRun) -> Iterator[dict[str, torch.Tensor]]:
        expert = run.expert
        if need == "logit-distance":
            yield self._distances(resident, expert)
            return
        _put(self._family, resident, "base" if need == "base-saliency" else expert)
        if need == "grams":
            yield from collect_grams(run.model, resident.parameters, run.batches, run.forward)
            return
        gradients = ExpertGradients(
            expert,
            self._forward(resident, expert),
            {task.name: _split(task, need) for task in self._tasks(expert)},
            device=self._device,
            batch_tokens=self._config.batch_tokens,
            seed=self._config.seed,
        )
        yield from gradients.of(need, resident.parameters)

    def _distances(self, resident: ResidentModel, expert: str) -> dict[str, torch.Tensor]:
        forward = self._forward(resident, expert)
        tokens = self._config.batch_tokens
        return logit_distances(
            expert,
            [other for other in self._family.experts if other != expert],
            load=lambda name: _put(self._family, resident, name),
            judge=lambda task, batch: forward.outputs(task, batch).logits,
            batches=(
                (task.name, batch)
                for task in self._tasks(expert)
                for batch in task.splits["fit"].unpacked().batches(batch_tokens=tokens)
            ),
            device=self._device,
        )

    def _tasks(self, expert: str) -> list[TaskData]:
        return [task for task in self._calibration.tasks.values() if task.expert == expert]

    def _forward(self, resident: ResidentModel, expert: str) -> Forward:
        own = {task.name: expert for task in self._tasks(expert)}
        heads = {task: head for task, head in self._heads.items() if task in own}
        return Forward(self._family, resident, own, heads)

    def _run(self, resident: ResidentModel, expert: str) -> ExpertRun:
        """How the resident model is run on an expert's data."""
        forward = self._forward(resident, expert)
        model = forward.model(self._tasks(expert)[0].name)
        return ExpertRun(
            expert,
            model,
            forward=lambda inputs: model(**inputs, **forward.options),
            batches=lambda: self._inputs(expert),
            batch_tokens=self._config.batch_tokens,
        )

    def _inputs(self, expert: str) -> Iterator[Inputs]:
        """The fit inputs of the tasks that name an expert, on the device."""
        for task in self._tasks(expert):
            for batch in task.splits["fit"].unpacked().batches(batch_tokens=self._config.batch_tokens):
                yield batch.to(self._device).inputs

    def _folder(self, need: Need, expert: str) -> Path:
        return cache_dir() / "statistics" / self._key(need, expert)

    def _key(self, need: Need, expert: str) -> str:
        tasks = self._tasks(expert)
        facts: list[object] = [
            need,
            version("optmerge"),
            self._family.experts[expert].sha256(),
            self._family.base.sha256(),
            self._family.heads,
            [task.splits["fit"].sha256 for task in tasks],
            str(self._dtype),
            str(self._device),
            self._config.batch_tokens,  # the order in which rows are summed up
            torch.__version__,
            torch.get_num_threads(),
        ]
        if need not in ("grams", MERGED_GRAMS):
            facts.append(
                [None if (head := self._heads.get(task.name)) is None else tensor_sha256(head) for task in tasks]
            )
        if need in ("fisher", "output-grams"):
            facts.append([self._config.seed, expert])  # what is drawn depends on both
        if need in LABELLED:
            facts.append([_split(task, need).labels_sha256 for task in tasks])
        if need == "logit-distance":
            facts.append([[name, each.sha256()] for name, each in self._family.experts.items()])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def methods_of_labels(directions: Sequence[Direction], experts: Sequence[str]) -> tuple[str, ...]:
    """The methods among directions whose statistics are of labels, by name."""
    configs = [direction.config for direction in directions if direction.config is not None]
    return tuple(dict.fromkeys(each.name for each in configs if build_method(each, experts).needs & LABELLED))


def _split(task: TaskData, need: Need) -> Split:
    """The examples that a statistic is of: with labels where it is of a loss on them, and never otherwise."""
    if need not in LABELLED:
        return task.splits["fit"]
    assert task.labelled is not None, "labels are read for the methods that need them"
    return task.labelled


def _put(family: Family, resident: ResidentModel, who: str) -> None:
    """Put the base or an expert into the resident model."""
    with torch.no_grad():
        for name, parameter in resident.parameters.items():
            parameter.copy_(family.read(who, name))
