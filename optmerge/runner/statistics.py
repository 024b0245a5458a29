"""Statistics of the experts on their own calibration inputs, made once and cached by content.

Each expert is put into the resident model, so that no second model is ever loaded, and is given the fit inputs of the
tasks that name it. Nothing but inputs is used, so no label is ever seen.

    statistics = ExpertStatistics(config, family, calibration, device=device, dtype=dtype)
    statistics.collect({"grams"}, resident, progress)
    statistics.statistic("grams", "topics", "bert.encoder.layer.0.output.dense.weight")      # fp32[d_in, d_in], mapped
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optmerge.config.methods import Need
from optmerge.merging.parts import Parts, write_parts
from optmerge.merging.statistics import Inputs, collect_grams
from optmerge.models.cache import cache_dir
from optmerge.runner.forward import Forward
from optmerge.runner.layerwise import MERGED_GRAMS, ExpertRun, LayerwiseMerge

if TYPE_CHECKING:
    from optmerge.calibration.data import Calibration
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
    """

    def __init__(
        self,
        config: SearchConfig,
        family: Family,
        calibration: Calibration,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._config = config
        self._family = family
        self._calibration = calibration
        self._device = device
        self._dtype = dtype
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
            RunFailed: There is not enough memory.
            RunError: The disk refuses.
        """
        self._resident = resident
        wanted = [(need, expert) for need in sorted(needs) if need != MERGED_GRAMS for expert in self._family.experts]
        for done, (need, expert) in enumerate(wanted):
            folder = self._folder(need, expert)
            if not folder.is_dir():
                write_parts(folder, self._grams(resident, expert))
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
            RunFailed: There is not enough memory.
        """
        folder = self._folder("grams", expert)
        if not folder.is_dir():
            yield from self._grams(resident, expert)
            return
        parts = Parts(folder)
        for name in self._family.parameters:
            if name in parts:
                yield {name: parts.read(name)}

    def _grams(self, resident: ResidentModel, expert: str) -> Iterator[dict[str, torch.Tensor]]:
        with torch.no_grad():
            for name, parameter in resident.parameters.items():
                parameter.copy_(self._family.read(expert, name))
        run = self._run(resident, expert)
        with run.enough_memory():
            yield from collect_grams(run.model, resident.parameters, run.batches, run.forward)

    def _run(self, resident: ResidentModel, expert: str) -> ExpertRun:
        """How the resident model is run on an expert's data."""
        own = {name: data.expert for name, data in self._calibration.tasks.items() if data.expert == expert}
        forward = Forward(self._family, resident, own)
        model = forward.model(next(iter(own)))
        return ExpertRun(
            expert,
            model,
            forward=lambda inputs: model(**inputs, **forward.options),
            batches=lambda: self._inputs(expert),
            batch_tokens=self._config.batch_tokens,
        )

    def _inputs(self, expert: str) -> Iterator[Inputs]:
        """The fit inputs of the tasks that name an expert, on the device."""
        for task in self._calibration.tasks.values():
            if task.expert == expert:
                for batch in task.splits["fit"].unpacked().batches(batch_tokens=self._config.batch_tokens):
                    yield batch.to(self._device).inputs

    def _folder(self, need: Need, expert: str) -> Path:
        return cache_dir() / "statistics" / self._key(need, expert)

    def _key(self, need: Need, expert: str) -> str:
        tasks = [task for task in self._calibration.tasks.values() if task.expert == expert]
        facts = [
            need,
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
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
