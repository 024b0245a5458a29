"""How the demo's experts are trained, as data; the training itself, which needs torch, is in `optmerge.demo.train`.

Used as:

    zoo = make_zoo(cache_dir(), list(TASKS), TrainingRecipe(steps=40))
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """How the experts are trained; part of the zoo's hash.

    Attributes:
        steps: Optimiser steps.
        batch: Examples per step.
        learning_rate: Peak rate of the body (AdamW, linear warm-up and decay).
        head_factor: The head's rate over the body's.
        warm_up: Steps until the peak.
        weight_decay: Of AdamW.
        max_tokens: Texts are cut to this many tokens.
        probe_examples: Examples on whose base features the head is started by logistic regression.
        seed: Of the generator that chooses and orders examples.
    """

    steps: int = 45
    batch: int = 32
    learning_rate: float = 3e-4
    head_factor: float = 20.0
    warm_up: int = 10
    weight_decay: float = 0.01
    max_tokens: int = 32
    probe_examples: int = 800
    seed: int = 0

    def rate(self, step: int) -> float:
        """The share of the peak rate at a step, counted from 0.

        >>> [TrainingRecipe().rate(step) for step in (0, 9, 24, 44)]
        [0.1, 1.0, 0.6, 0.02857142857142857]
        """
        return min((step + 1) / self.warm_up, (self.steps - step) / max(1, self.steps - self.warm_up))
