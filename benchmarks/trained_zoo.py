"""A zoo that a benchmark trains by itself: where its base, experts and held-out data are, and the one training loop.

zoo = TrainedZoo(cache_dir() / "time-to-quality" / "digits", ("rotated", "scaled"))
train(model, lambda: loss_of(next_batch()), steps=300, learning_rate=1e-3, title="the expert for rotated")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track


@dataclass(frozen=True, slots=True)
class TrainedZoo:
    """A base model and one expert per task, of the task's name.

    Attributes:
        folder: Of all parts.
        tasks: Names of the tasks.
    """

    folder: Path
    tasks: tuple[str, ...]

    @property
    def base(self) -> Path:
        """Folder of the base model."""
        return self.folder / "base"

    @property
    def experts(self) -> Mapping[str, Path]:
        """Task -> its expert's folder."""
        return {task: self.folder / task for task in self.tasks}

    @property
    def data(self) -> Mapping[str, Path]:
        """Task -> a file of examples that no model has seen."""
        return {task: self.folder / "data" / f"{task}.jsonl" for task in self.tasks}

    def complete(self) -> bool:
        """Whether nothing is missing."""
        models = [self.base, *self.experts.values()]
        return all((model / "config.json").exists() for model in models) and all(
            file.exists() for file in self.data.values()
        )


def train(
    model: torch.nn.Module, loss: Callable[[], torch.Tensor], *, steps: int, learning_rate: float, title: str
) -> None:
    """AdamW with a linear decay to zero, and a progress bar.

    Args:
        model: Trained in place.
        loss: The next batch's loss; it may use one generator, so that the order of calls decides what it sees.
        steps: How many.
        learning_rate: Of the first step.
        title: What is trained, for people.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    model.train()
    for _ in track(range(steps), f"Training {title}"):
        value = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
