"""A merge that goes on layer by layer in the resident model, and Gram matrices that depend on it (RegMean++).

A layer's inputs come through the layers that are merged already, and within the layer from the expert's own modules
(Nguyen et al. 2025, section 3). First all that is outside the layers is merged, from nothing but weights; then the
layers in the order in which they are run, an encoder's before its decoder's; last what is first used after them, such
as a pooler or an untied head.

    merge = LayerwiseMerge(family, resident, runs, device=device)
    for stage in merge.stages():                                    # parameters; their experts' matrices are there now
        for name in stage:
            merge.settle(name, method.delta(models, name))          # models.statistic asks merge.statistic
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from optmerge.config.methods import Need
from optmerge.errors import ModelError, RunFailed
from optmerge.merging.methods.base import working_dtype
from optmerge.merging.statistics import Inputs, collect_grams, linear_layers
from optmerge.merging.stepping import Course, Walk, follow
from optmerge.models.device import out_of_memory
from optmerge.models.roles import layer_modules

if TYPE_CHECKING:
    from optmerge.models.family import Family
    from optmerge.models.resident import ResidentModel

MERGED_GRAMS: Need = "merged-grams"


@dataclass(frozen=True)
class ExpertRun:
    """How an expert's model is run on its own data.

    Attributes:
        expert: Its name.
        model: The full model around the resident body.
        forward: Runs it on one batch.
        batches: The expert's inputs, on the model's device; the same ones, in the same order, each time.
        batch_tokens: Their size.
    """

    expert: str
    model: nn.Module
    forward: Callable[[Inputs], object]
    batches: Callable[[], Iterable[Inputs]]
    batch_tokens: int

    @contextmanager
    def enough_memory(self) -> Iterator[None]:
        """Say what to do where there is not enough of it.

        Raises:
            RunFailed: There is not.
        """
        try:
            yield
        except Exception as error:
            if not out_of_memory(error):
                raise
            raise RunFailed(
                f"There is not enough memory to gather statistics of the expert {self.expert}: "
                f"{' '.join(str(error).split())[:300]}. Set batch_tokens lower than {self.batch_tokens}, or use a "
                "device with more memory."
            ) from None

    def finite(self, need: Need, part: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Statistics on the CPU as they are, looked at.

        Raises:
            ModelError: Not all are finite numbers.
        """
        for name, tensor in part.items():
            if not tensor.isfinite().all():
                dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
                raise ModelError(
                    f"The {need} of {name}, of the expert {self.expert}'s data, are not all finite numbers: values "
                    f"overflow in {dtype}. Set dtype: float32 where it is another, or look for very large weights in "
                    "the base and in this expert."
                )
        return part


class LayerwiseMerge:
    """See `optmerge.merging.models_view.LayerByLayer`.

    Args:
        family: Base and experts.
        resident: Holds the merge so far, and any values afterwards.
        runs: Expert -> how it is run.
        device: Where the resident model is.
    """

    def __init__(
        self, family: Family, resident: ResidentModel, runs: Mapping[str, ExpertRun], *, device: torch.device
    ) -> None:
        self._family = family
        self._resident = resident
        self._runs = runs
        self._device = device
        self._grams: dict[tuple[str, str], torch.Tensor] = {}  # of the stage, by expert and parameter
        self._open: set[str] = set()

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        """See `optmerge.merging.methods.base.Models.statistic`; of the stage that came last."""
        assert need == MERGED_GRAMS, f"{need} does not depend on the merge"
        return self._grams.get((expert, name))

    def settle(self, name: str, delta: torch.Tensor) -> None:
        """Put a parameter of the stage, base and delta, into the resident model."""
        base = self._family.read("base", name)
        with torch.no_grad():
            self._resident.parameters[name].copy_(base.to(working_dtype(base)) + delta)
        self._open.discard(name)

    def stages(self) -> Iterator[tuple[str, ...]]:
        """Parameters, some at a time; before they are given out, their experts' matrices are measured.

        All of them must be settled before the next are asked for.

        Raises:
            ModelError: The model cannot be stepped through; see `follow` and `Walk.at`.
            RunFailed: There is not enough memory.
        """
        first = next(iter(self._runs.values()))
        layers = layer_modules(first.model)
        with first.enough_memory():
            course = follow(
                first.model,
                layers,
                self._resident.parameters,
                lambda: first.forward(next(iter(first.batches()))),
            )
        walks = {
            expert: Walk(
                [layer_modules(run.model)[index] for index in course.order],
                run.forward,
                device=self._device,
                ends=course.ends,
            )
            for expert, run in self._runs.items()
        }
        for position, stage in enumerate(self._parted(course), start=-1):
            if position >= 0:
                for expert, walk in walks.items():
                    self._measure(expert, walk, position, stage)
            self._open = set(stage)
            yield stage
            assert not self._open, f"not merged: {', '.join(sorted(self._open))}"
            self._grams.clear()

    def _parted(self, course: Course) -> list[tuple[str, ...]]:
        """What is outside the layers, each layer of the course, and what comes after them."""
        at = {layer: position for position, layer in enumerate(course.order)}
        stages: list[list[str]] = [[] for _ in range(len(course.order) + 2)]
        for name, parameter in self._family.parameters.items():
            layer = parameter.role.layer
            if layer in at:
                stages[at[layer] + 1].append(name)
            else:
                stages[-1 if layer is None and name in course.after else 0].append(name)
        return [tuple(stage) for stage in stages]

    def _measure(self, expert: str, walk: Walk, position: int, stage: tuple[str, ...]) -> None:
        """The expert's Gram matrices of the linear layers of a stage."""
        parameters, run = {name: self._resident.parameters[name] for name in stage}, self._runs[expert]
        linear = bool(linear_layers(run.model, parameters))
        if position == len(walk) and not linear:
            return
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self._family.read(expert, name))

        def batches() -> Iterable[Inputs]:
            walk.rewind()
            return run.batches()

        with run.enough_memory(), walk.at(position) as step:
            for part in collect_grams(run.model, parameters, batches, step):
                self._grams.update({(expert, name): gram for name, gram in run.finite(MERGED_GRAMS, part).items()})
            if not linear:  # what the next layer is given goes through this one
                for batch in batches():
                    step(batch)
