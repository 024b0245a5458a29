"""Signals: what warns of a collapse that an objective cannot see, watched while a model is judged.

    watch = Signals(device)
    watch.add("topic", scored_logits(outputs.logits, batch), teacher)     # for every batch
    watch.read()            # {"marginal-entropy/topic": 0.93, "top-share/topic": 0.11, "agreement/topic": 0.84, ...}

Per task, over all its rows (examples, or scored tokens; see `optmerge.objective.base`), with p a row's prediction:

    marginal-entropy         H(mean of p) / ln C: 1 where all classes are predicted alike, 0 where only one is
    top-share                share of the rows whose likeliest class is the most frequent one
    agreement                share of the rows whose likeliest class is the expert's
    expert-marginal-entropy  the first two of the task's expert, on the same rows
    expert-top-share

Where the expert's outputs hold some classes only, all others count as one class in its marginal entropy, which is then
a lower bound. Sums are kept on the device: probabilities in fp32, counts as integers, by chunks of rows, so that a
large vocabulary is never whole in fp32. They do not depend on an order of atomic additions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from optmerge.objective.base import CHUNK

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from optmerge.objective.teacher import TeacherBatch
    from optmerge.records import Vector

_ROWS = CHUNK // 4  # logits at a time: the pass's own activations are alive beside them
_OF_MODEL = ("marginal-entropy", "top-share")


@dataclass(eq=False)
class Predictions:
    """Sums over rows: of probabilities, fp32[C] (one more for the classes that are not told apart), and of choices."""

    mass: Tensor
    chosen: Tensor
    rows: int = 0

    @classmethod
    def none(cls, classes: int, device: torch.device, *, others: bool = False) -> Predictions:
        """No rows yet; with ``others`` there is one class more, of all that are not told apart."""
        return cls(
            torch.zeros(classes + others, dtype=torch.float32, device=device),
            torch.zeros(classes, dtype=torch.int64, device=device),
        )

    def __iadd__(self, other: Predictions) -> Predictions:
        """Add the sums over other rows, wherever they are."""
        self.mass += other.mass.to(self.mass.device)
        self.chosen += other.chosen.to(self.chosen.device)
        self.rows += other.rows
        return self

    def count(self, choice: Tensor) -> None:
        """Add rows' choices, int64[N]."""
        self.rows += len(choice)
        self.chosen.scatter_add_(0, choice, torch.ones_like(choice))

    def summary(self) -> tuple[Tensor, Tensor]:
        """Marginal entropy as a share of ln C, and the share of the most frequent choice."""
        mean = self.mass / self.rows
        entropy = -torch.special.xlogy(mean, mean).sum()
        return entropy / math.log(max(2, len(self.chosen))), self.chosen.max() / self.rows


@dataclass(frozen=True, eq=False)
class Watched:
    """What a watch saw of some examples, by task, on the CPU: sums over them, which can be pickled and added up."""

    models: dict[str, Predictions]
    experts: dict[str, Predictions]
    agreeing: dict[str, int]


class Signals:
    """Watches the predictions of one evaluation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._models: dict[str, Predictions] = {}
        self._experts: dict[str, Predictions] = {}
        self._agreeing: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, task: str, logits: Tensor, teacher: TeacherBatch | None) -> None:
        """Add a batch's predictions.

        Args:
            task: Whose inputs they are for.
            logits: [N, C], one row per prediction; any floating dtype.
            teacher: The expert's outputs for the same rows; None where there are none, and then the signals that
                compare with the expert are missing.
        """
        classes = logits.shape[-1]
        if task not in self._models:
            self._models[task] = Predictions.none(classes, self._device)
        model = self._models[task]
        choices = []
        for chunk in torch.split(logits.detach(), max(1, _ROWS // classes)):
            model.mass += torch.softmax(chunk, -1, dtype=torch.float32).sum(0)
            choices.append(chunk.argmax(-1))
        choice = torch.cat(choices)
        model.count(choice)
        if teacher is None:
            return
        if task not in self._experts:
            self._experts[task] = Predictions.none(classes, self._device, others=True)
            self._agreeing[task] = torch.zeros((), dtype=torch.int64, device=self._device)
        expert = self._experts[task]
        probabilities = teacher.log_probs.float().exp()
        if teacher.indices is None:
            expert.mass[:-1] += probabilities.sum(0)
        else:
            kept = probabilities[:, :-1].reshape(-1)
            expert.mass.index_put_((teacher.indices.reshape(-1),), kept, accumulate=True)
            expert.mass[-1] += probabilities[:, -1].sum()
        expert.count(teacher.choice)
        self._agreeing[task] += (choice == teacher.choice).sum()

    def sums(self) -> Watched:
        """What was seen so far, on the CPU."""
        return Watched(
            {task: _on_cpu(model) for task, model in self._models.items()},
            {task: _on_cpu(expert) for task, expert in self._experts.items()},
            {task: int(count) for task, count in self._agreeing.items()},
        )

    def include(self, seen: Watched) -> None:
        """Add what another watch saw of other examples."""
        for mine, theirs, others in ((self._models, seen.models, False), (self._experts, seen.experts, True)):
            for task, sums in theirs.items():
                if task not in mine:
                    mine[task] = Predictions.none(len(sums.chosen), self._device, others=others)
                mine[task] += sums
        for task, count in seen.agreeing.items():
            self._agreeing[task] = (
                self._agreeing.get(task, torch.zeros((), dtype=torch.int64, device=self._device)) + count
            )

    def pending(self) -> dict[str, Tensor]:
        """Name -> fp32 scalar on the device, for whoever reads it together with other values."""
        found: dict[str, Tensor] = {}
        for task, model in self._models.items():
            found |= {f"{name}/{task}": value for name, value in zip(_OF_MODEL, model.summary(), strict=True)}
        for task, expert in self._experts.items():
            found[f"agreement/{task}"] = self._agreeing[task] / expert.rows
            found |= {f"expert-{name}/{task}": value for name, value in zip(_OF_MODEL, expert.summary(), strict=True)}
        return found

    def read(self) -> dict[str, float]:
        """Name -> value; one synchronisation with the device."""
        pending = self.pending()
        if not pending:
            return {}
        return dict(zip(pending, torch.stack(list(pending.values())).tolist(), strict=True))


def _on_cpu(sums: Predictions) -> Predictions:
    return Predictions(sums.mass.cpu(), sums.chosen.cpu(), sums.rows)


def row_sums(table: Vector) -> dict[str, float]:
    """``row-sum/mean`` and ``row-sum/max`` of coefficients [G, D]: of each tensor group's sum over directions.

    Sums far above 1 make features large and every prediction sure.
    """
    sums = table.sum(axis=1)
    return {"row-sum/mean": float(sums.mean()), "row-sum/max": float(sums.max())}


def share_at_bound(
    vector: Vector, lower: Vector, upper: Vector, *, choices: npt.NDArray[np.bool_] | None = None
) -> float:
    """The share of variables [d] that stand at one of their bounds; those that are ``choices`` do not count."""
    at = (vector == lower) | (vector == upper)
    counted = at if choices is None else at[~choices]
    return float(counted.mean()) if counted.size else 0.0
