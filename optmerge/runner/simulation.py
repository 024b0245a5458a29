"""How much memory a forward or backward pass takes, found without any: the pass runs on the meta device.

Tensors on the meta device have shapes, storages and lifetimes, but no values, so that the real model under the real
objective tells exactly which activations autograd keeps and when it lets go of them.

    peak = simulated_peak(lambda: loss().backward())          # bytes of tensors alive at once, beyond those before
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optmerge.config.schema import SearchConfig
from optmerge.merging.engine import Form
from optmerge.models.checkpointing import Checkpointing
from optmerge.models.resident import ResidentModel
from optmerge.objective.base import scored_logits
from optmerge.objective.kept import Keep
from optmerge.objective.objective import Objective
from optmerge.objective.outputs import Outputs
from optmerge.objective.signals import Signals
from optmerge.objective.teacher import TeacherBatch
from optmerge.records import SplitName
from optmerge.runner.forward import Forward
from optmerge.runner.heads import blank_heads

if TYPE_CHECKING:
    from optmerge.calibration.data import Batch, Calibration
    from optmerge.models.family import Family
    from optmerge.space.space import SearchSpace

META = torch.device("meta")


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations make inside the block.

    Attributes:
        device: Type of the device that counts.
        live: Bytes alive now.
        peak: The most that were alive at once.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == "meta":
            # A model asks whether a mask hides anything: the answer that costs more memory is that it does.
            return False if args[0].dtype == torch.bool else 0
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device:
                self._know(leaf.untyped_storage(), 0)  # what an operation is given, it did not make: parameters
        if func is torch.ops.aten._grouped_mm.default and args[0].device.type == "meta":
            result = _grouped_product(*args[:3])
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device:
                self._know(leaf.untyped_storage(), leaf.untyped_storage().nbytes())
        return result

    def _know(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        """Count a storage that was not seen before as ``nbytes``, for as long as it lives."""
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.live += nbytes
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key, nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        self._seen.discard(key)
        self.live -= nbytes


def _grouped_product(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """An empty result of torch's product of groups of rows with a matrix each, which has no fp32 form on meta."""
    if a.ndim == b.ndim == 2:
        return a.new_empty(offsets.shape[0], a.shape[0], b.shape[1])
    return a.new_empty(a.shape[-2], b.shape[-1])


def simulated_peak(work: Callable[[], object]) -> int:
    """The most bytes that ``work`` has alive at once in tensors that it makes on the meta device.

    Tensors that it leaves behind count from then on, so a second call sees what a first one kept only if the caller
    runs both inside one ``work``.
    """
    counter = LiveBytes()
    with counter:
        work()
    return counter.peak


class Passes:
    """The passes of a search's evaluations, on the meta device.

    Args:
        config: The search.
        family: Base and experts.
        model: On the meta device.
        space: Says which parameters need gradients.
        calibration: The tasks' batches.
    """

    def __init__(
        self,
        config: SearchConfig,
        family: Family,
        model: ResidentModel,
        space: SearchSpace,
        calibration: Calibration,
    ) -> None:
        self.config = config
        self.model = model
        self.calibration = calibration
        classes = {name: data.num_labels for name, data in calibration.tasks.items()}
        self.objective = Objective(config.objective, list(config.tasks), classes)
        halves = {name: {term.name: 0.5 for term in self.objective.terms} for name in config.tasks}
        self.objective.set_normalisers("fit", halves)
        self.watched = [model.parameters[name] for name in space.searched_parameters]
        experts = {name: data.expert for name, data in calibration.tasks.items()}
        self.forward = Forward(family, model, experts, blank_heads(family, calibration, META))
        self.count = family.num_layers
        self.signals = Signals(META)
        self.checkpointing = (
            Checkpointing(map(model.model_for, family.experts)) if config.checkpointing else nullcontext()
        )

    def peak(self, form: Form | None) -> int:
        """Bytes that an evaluation has alive beside the model: without a gradient, or with one in the given form."""
        splits: tuple[SplitName, ...] = ("fit",) if form else ("fit", "select", "report")
        heaviest: dict[str, Batch] = {}
        for task, data in self.calibration.tasks.items():
            batches = [
                batch for name in splits for batch in data.splits[name].batches(batch_tokens=self.config.batch_tokens)
            ]
            if batches:
                heaviest[task] = max(batches, key=lambda batch: batch.tokens)

        def work() -> None:
            for _ in range(2 if form else 1):  # the second pass finds the first one's gradients in place
                for task, batch in heaviest.items():
                    self._pass(task, batch, backward=form is not None)

        hooks = []
        for parameter in self.watched if form else ():
            parameter.requires_grad_(True)
            if form == "hooks":
                hooks.append(parameter.register_post_accumulate_grad_hook(_drop))  # type: ignore[no-untyped-call]
        with self.checkpointing if form else nullcontext(), torch.set_grad_enabled(form is not None):
            peak = simulated_peak(work)
        for hook in hooks:
            hook.remove()
        for parameter in self.watched:
            parameter.requires_grad_(False)
            parameter.grad = None
        return peak

    def _pass(self, task: str, batch: Batch, *, backward: bool) -> None:
        self._judge(self.objective, task, batch, backward=backward)
        if not backward and self.objective.on("select") is not self.objective:
            self._judge(self.objective.on("select"), task, batch, backward=False)

    def _judge(self, composed: Objective, task: str, batch: Batch, *, backward: bool) -> None:
        moved = batch.to(META)
        outputs = self.forward.outputs(task, moved, composed.layers(self.count))
        rows = len(batch.rows) if batch.rows is not None else batch.size
        teacher = _teacher(rows, outputs, self.objective.keep(self.count))
        self.signals.add(task, scored_logits(outputs.logits, moved), teacher)
        values = {term.name: term.per_example(outputs, moved, teacher) for term in composed.terms}
        if backward:
            # A summary's statistics [B, m] are multiplied by a slope each, and added up.
            values = {name: value if value.ndim == 1 else value.sum(1) for name, value in values.items()}
            composed.loss("fit", task, values, batch.size, weight=1.0).backward()  # type: ignore[no-untyped-call]


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _teacher(rows: int, outputs: Outputs, keep: Keep) -> TeacherBatch:
    classes = outputs.logits.shape[-1]
    columns = keep.columns(classes)
    log_probs, choice = torch.empty(rows, columns, device=META), torch.empty(rows, dtype=torch.int64, device=META)
    some = columns != classes
    indices = torch.empty(rows, columns - 1, dtype=torch.int64, device=META) if some else None
    drawn = torch.empty(rows, keep.samples, dtype=torch.int64, device=META) if some and keep.samples else None
    drawn_log_probs = None if drawn is None else torch.empty(rows, keep.samples, device=META)
    tempered = {t: torch.empty(rows, 2, device=META) for t in keep.temperatures} if some else {}
    # How many places are attended to is a value: on the meta device all of them are.
    hidden = {
        layer: torch.empty(value.shape[:2].numel(), keep.width(value.shape[-1]), dtype=value.dtype, device=META)
        for layer, value in outputs.hidden.items()
    }
    return TeacherBatch(log_probs, indices, choice, drawn, drawn_log_probs, tempered, hidden)
