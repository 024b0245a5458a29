"""The engine: writes coefficients into the resident model, and contracts weight gradients into coefficient gradients.

No state dict is built, and nothing is allocated per candidate: buffers, and the table of what lies where, are made
once. See `writing` for the order of accumulation, which is part of the contract.

    engine = Engine(parameters, deltas.segments, group_of)
    engine.apply(table)                      # float64[G, D]
    with engine.gradient() as gradient:
        loss.backward()                      # any number of times
    table_gradient = gradient.table()        # float64[G, D]
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from optmerge.merging.batch import Batch
from optmerge.merging.coefficients import Table
from optmerge.merging.placement import Placement
from optmerge.merging.sliced import contract_sliced, write_sliced
from optmerge.merging.sliced_batch import SlicedBatch
from optmerge.merging.slices import Cut
from optmerge.merging.sources import Segment
from optmerge.merging.writing import Workspace, accumulation_dtype, contract, write_merge

Form = Literal["accumulate", "hooks"]


class Engine:
    """Applies coefficients to resident parameters and turns their gradients into coefficient gradients.

    Args:
        parameters: The resident parameters by name; tied ones once.
        segments: Name -> the parameter's segments, each with the base's values and one source per direction.
        group_of: Name -> row of the coefficient table; the first of its rows where a parameter is cut.
        form: How gradients are gathered: "accumulate" keeps one model-sized gradient and contracts it once;
            "hooks" contracts each parameter's gradient as soon as it is whole in every backward pass and drops it.
        placement: What is kept on the parameters' device; everything else is streamed to it. The factors of low-rank
            directions are always kept there. Without meaning on the CPU, which reads the mapped files in place.
        cuts: Name -> how a parameter is cut into groups that follow one another; the others are one group each, or
            share one.
        num_groups: Rows of the coefficient table, where other engines have parameters of the same model; None is what
            these parameters need.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        segments: Callable[[str], list[Segment]],
        group_of: Mapping[str, int],
        *,
        form: Form = "accumulate",
        placement: Placement | None = None,
        cuts: Mapping[str, Cut] | None = None,
        num_groups: int | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.group_of = dict(group_of)
        self.cuts = {name: cut for name, cut in (cuts or {}).items() if name in self.parameters}
        self._num_groups = num_groups
        self.form = form
        first = next(iter(self.parameters.values()))
        self.device = first.device
        self.accumulate = accumulation_dtype(first.dtype)
        self.workspace = Workspace(self.device, self.accumulate)
        self._segments_of = segments
        self._placement = placement or Placement()
        self._kept: dict[str, list[Segment]] = {}
        self._batches: dict[tuple[int, ...] | None, Batch] = {}
        self._sliced_batches: dict[tuple[int, ...] | None, SlicedBatch] = {}
        self._resident: Table | None = None  # what the parameters hold, but for those that are unknown
        self._unknown: set[str] = set()

    @property
    def num_groups(self) -> int:
        """Rows of the coefficient table."""
        return self._num_groups or max(int(self._rows(name).stop) for name in self.parameters)

    @property
    def shards(self) -> tuple[Engine, ...]:
        """The engines of the model's devices: this one."""
        return (self,)

    def regrouped(
        self, group_of: Mapping[str, int], cuts: Mapping[str, Cut] | None = None, *, num_groups: int | None = None
    ) -> Engine:
        """An engine for other groups of the same parameters, which shares all that is kept on the device.

        This one's parameters are the other's to write from now on.
        """
        other = Engine(
            self.parameters,
            self._segments_of,
            group_of,
            form=self.form,
            placement=self._placement,
            cuts=cuts,
            num_groups=num_groups,
        )
        other.workspace, other._kept = self.workspace, self._kept
        return other

    def along(
        self,
        segments: Callable[[str], list[Segment]],
        group_of: Mapping[str, int],
        cuts: Mapping[str, Cut] | None = None,
        *,
        num_groups: int | None = None,
    ) -> Engine:
        """An engine for other directions of the same parameters, which shares this one's buffers.

        What it is given is streamed. This one's parameters are the other's to write from now on.
        """
        other = Engine(self.parameters, segments, group_of, cuts=cuts, num_groups=num_groups)
        other.workspace = self.workspace
        return other

    @property
    def num_directions(self) -> int:
        """Columns of the coefficient table."""
        return len(self.segments(next(iter(self.parameters)))[0].sources)

    def segments(self, name: str) -> list[Segment]:
        """A parameter's segments; remembered where they are views of mapped files, made anew where they are not."""
        if name in self._kept:
            return self._kept[name]
        found = self._segments_of(name)
        if self.device.type != "cpu":
            found = [self._placement.place(segment, self.device) for segment in found]
        if not any(segment.temporary for segment in found):
            self._kept[name] = found
        return found

    @torch.no_grad()
    def apply(self, table: Table) -> int:
        """Write coefficients [G, D] into the resident parameters; returns how many parameters were rewritten.

        Parameters whose rows are those that they already hold are left alone.
        """
        changed = self._changed(table)
        self._unknown.update(changed)  # an exception in the middle leaves a parameter unknown, not wrong
        sliced = self._unlike(table, changed)
        batch = self._batch()
        batch.merge(table, {name: self.parameters[name].data for name in changed if name not in sliced})
        for name in changed:
            if name not in batch and name not in sliced:
                row = table[self.group_of[name]].tolist()
                for segment in self.segments(name):
                    write_merge(self.parameters[name].data[segment.index], segment, row, self.workspace)
        if sliced:
            self._sliced_batch().merge(table, {name: self.parameters[name].data for name in sliced})
            self._apply_sliced(table, [name for name in sliced if name not in self._sliced_batch()])
        self._resident = table.copy()
        self._unknown.clear()
        return len(changed)

    def forget(self) -> None:
        """The resident values were changed from outside; the next `apply` rewrites everything."""
        self._resident = None

    def _rows(self, name: str) -> slice:
        """A parameter's rows of the coefficient table."""
        first, cut = self.group_of[name], self.cuts.get(name)
        return slice(first, first + (1 if cut is None else cut.count))

    def _changed(self, table: Table) -> list[str]:
        if self._resident is None or self._resident.shape != table.shape:
            return list(self.parameters)
        differ = _running((table != self._resident).any(axis=1))
        rows = {name: self._rows(name) for name in self.parameters}
        return [name for name, at in rows.items() if differ[at.stop] > differ[at.start] or name in self._unknown]

    def _unlike(self, table: Table, names: Sequence[str]) -> set[str]:
        """The parameters among ``names`` whose groups do not all have the same coefficients."""
        if not self.cuts:
            return set()
        step = _running((table[1:] != table[:-1]).any(axis=1))  # rows that differ from the next one
        rows = {name: self._rows(name) for name in names if name in self.cuts}
        return {name for name, at in rows.items() if step[at.stop - 1] > step[at.start]}

    def _apply_sliced(self, table: Table, names: Collection[str]) -> None:
        """Write parameters with coefficients of their own for every slice; the table goes to the device once."""
        if not names:
            return
        wide = np.float64 if self.accumulate == torch.float64 else np.float32
        columns = torch.from_numpy(table.T.astype(wide)).to(self.device, non_blocking=True)
        for name in self.parameters:
            if name in names:
                rows = self._rows(name)
                used = np.atleast_1d(table[rows].any(axis=0))
                values = [columns[k, rows] if some else None for k, some in enumerate(used)]
                for segment in self.segments(name):
                    out = self.parameters[name].data[segment.index]
                    write_sliced(out, segment, self.cuts[name], values, self.workspace)

    @contextmanager
    def gradient(
        self, groups: npt.ArrayLike | None = None, columns: Sequence[int] | None = None
    ) -> Iterator[GradientGatherer]:
        """Gather dL/dW of every backward pass inside the block.

        Only parameters of ``groups`` get gradients, and only the directions ``columns`` are contracted (None: all).

        The objective's total must be the sum of the losses that are back-propagated.
        """
        wanted = np.ones(self.num_groups, dtype=np.bool_)
        if groups is not None:
            wanted[:] = False
            wanted[np.asarray(groups, dtype=np.int64)] = True
        watched = {name: p for name, p in self.parameters.items() if wanted[self._rows(name)].any()}
        gatherer = GradientGatherer(self, watched, range(self.num_directions) if columns is None else columns)
        try:
            yield gatherer
            gatherer.close(complete=True)
        finally:
            gatherer.close(complete=False)

    @torch.no_grad()
    def contract_into(self, out: torch.Tensor, gradients: Mapping[str, torch.Tensor], columns: Sequence[int]) -> None:
        """Add the contributions of some parameters' gradients to ``out`` [G, D]."""
        batch = self._batch(tuple(columns))
        batch.contract({name: gradient for name, gradient in gradients.items() if name not in self.cuts}, out)
        sliced = self._sliced_batch(tuple(columns))
        sliced.contract(gradients, out)
        for name, gradient in gradients.items():
            cut = self.cuts.get(name)
            if name in sliced:
                continue
            if cut is not None:
                into = out[self._rows(name)]
                for segment in self.segments(name):
                    contract_sliced(gradient[segment.index], segment, cut, columns, into, self.workspace)
            elif name not in batch:
                for segment in self.segments(name):
                    contract(gradient[segment.index], segment, columns, out[self.group_of[name]], self.workspace)

    def _batch(self, columns: tuple[int, ...] | None = None) -> Batch:
        """The parameters that the compiled kernels can do, laid out once; none on an accelerator."""
        if columns not in self._batches:
            self._batches[columns] = Batch(
                self.workspace.library, self.parameters, self.segments, self.group_of, columns=columns
            )
        return self._batches[columns]

    def _sliced_batch(self, columns: tuple[int, ...] | None = None) -> SlicedBatch:
        """Likewise, of the parameters that are cut."""
        if columns not in self._sliced_batches:
            self._sliced_batches[columns] = SlicedBatch(
                self.workspace.library, self.parameters, self.segments, self.group_of, self.cuts, columns=columns
            )
        return self._sliced_batches[columns]


class GradientGatherer:
    """What `Engine.gradient` yields; ``table()`` is dL/dcoefficients once the block has ended."""

    def __init__(self, engine: Engine, watched: dict[str, nn.Parameter], columns: Sequence[int]) -> None:
        self.engine = engine
        self.watched = watched
        self.columns = tuple(columns)
        precise = torch.float64 if engine.device.type != "mps" else torch.float32
        self._out = torch.zeros(engine.num_groups, engine.num_directions, dtype=precise, device=engine.device)
        self._hooks = []
        self._done = False
        for name, parameter in watched.items():
            parameter.requires_grad_(True)
            if parameter.grad is not None:
                parameter.grad.zero_()
            if engine.form == "hooks":
                hook = parameter.register_post_accumulate_grad_hook(self._drop(name))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def table(self) -> Table:
        """dL/dcoefficients, float64[G, D]; the one synchronisation of a gradient evaluation."""
        assert self._done, "the table is whole only after the block has ended"
        result: Table = self._out.to("cpu", torch.float64).numpy()
        return result

    def close(self, *, complete: bool) -> None:
        """End gathering; contracts what was accumulated when the block ended without an exception."""
        if self._done:
            return
        if complete and self.engine.form == "accumulate":
            gradients = {name: p.grad for name, p in self.watched.items() if p.grad is not None}
            self.engine.contract_into(self._out, gradients, self.columns)
        self._done = True
        for hook in self._hooks:
            hook.remove()
        for parameter in self.watched.values():
            parameter.requires_grad_(False)
            if self.engine.form == "hooks" or not complete:
                parameter.grad = None

    def _drop(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self.engine.contract_into(self._out, {name: parameter.grad}, self.columns)
            parameter.grad = None

        return hook


def _running(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """How many are true before each position, and before the end."""
    return np.concatenate([[0], np.cumsum(flags)])


def one_hot(num_groups: int, num_directions: int, direction: int) -> Table:
    """The table [G, D] that makes the resident model one direction's expert."""
    table = np.zeros((num_groups, num_directions))
    table[:, direction] = 1.0
    return table
