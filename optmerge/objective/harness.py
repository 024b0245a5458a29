"""``lm-eval``: tasks of EleutherAI's lm-evaluation-harness, scored on the resident model.

    term = LmEval(LmEvalConfig(tasks=["/data/questions.yaml"]))
    term.open(surroundings)
    term.measure(model, "select")          # the mean over tasks of the metric, on the select documents

One harness model is wrapped around the resident one, and tasks, documents and tokenised requests are kept for the whole
run: a candidate costs the forward passes of its requests and no loading. The value is what ``lm_eval.simple_evaluate``
gives for the exported checkpoint on the same documents: the same seeds are set for the time of a measurement, and every
global generator is put back afterwards.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from optmerge.config.objectives import LmEvalConfig
from optmerge.errors import ConfigError, did_you_mean
from optmerge.objective.harness_tasks import HarnessTasks, quiet_harness, require_harness
from optmerge.objective.whole import Surroundings, WholeModelTerm
from optmerge.records import SplitName


class LmEval(WholeModelTerm):
    """The mean over lm-eval tasks of one of their metrics."""

    name: ClassVar[str] = "lm-eval"
    unit: ClassVar[str] = "the metric's"
    paper: ClassVar[str] = "Gao et al., The Language Model Evaluation Harness; optimised as mergekit-evolve does"

    def __init__(self, config: LmEvalConfig) -> None:
        super().__init__(config)
        self.settings = config
        self._around: Surroundings | None = None
        self._tasks: HarnessTasks | None = None
        self._model: nn.Module | None = None
        self._harness_model: Any = None

    def open(self, around: Surroundings) -> None:
        """Load the tasks.

        Raises:
            MissingExtraError: lm-eval is not installed.
            ConfigError: The models are not causal language models, or a task cannot be used.
            DataError: A task has too few documents.
        """
        if around.kind != "causal-lm":
            raise ConfigError(
                f"The term lm-eval judges causal language models, and these are of the kind {around.kind}. Use "
                "accuracy or cross-entropy on the tasks' own data instead."
            )
        require_harness()
        with kept_generators():
            self._tasks = HarnessTasks.load(self.settings)
        self.higher_is_better = self._tasks.higher_is_better
        self._around = around

    def identity(self) -> Mapping[str, str]:
        """The hash of every task's settings and documents."""
        return {f"lm-eval task {name}": digest for name, digest in self._opened().hashes.items()}

    @torch.no_grad()
    def measure(self, model: nn.Module, split: SplitName) -> float:
        """See `WholeModelTerm.measure`.

        Raises:
            ConfigError: The tasks have no such metric and filter.
            ValueError: The harness gives no number.
        """
        from lm_eval.defaults import DEFAULT_OTHER_SEED
        from lm_eval.evaluator import evaluate

        tasks = self._opened()
        with kept_generators(), quiet_harness():
            harness_model = self._harness_model_of(model)
            for task in tasks.loaded.values():
                task.set_fewshot_seed(DEFAULT_OTHER_SEED)
            results = evaluate(
                lm=harness_model,
                task_dict={"tasks": dict(tasks.loaded)},
                samples=dict(tasks.positions[split]),
                bootstrap_iters=0,
                log_samples=False,
                apply_chat_template=self.settings.chat_template,
                fewshot_as_multiturn=True,
            )["results"]
        return sum(self._value(name, results[name]) for name in tasks.loaded) / len(tasks.loaded)

    def _value(self, task: str, results: Mapping[str, Any]) -> float:
        metric = self.settings.metric
        if metric not in results:
            known = [name for name in results if "," in name and "_stderr," not in name]
            raise ConfigError(
                f"The lm-eval task {task} gives no {metric!r}; expected one of {', '.join(known)}."
                f"{did_you_mean(metric, known)}"
            )
        value = float(results[metric])
        if not math.isfinite(value):
            raise ValueError(f"the lm-eval task {task} has {metric} = {value}")
        return value

    def _opened(self) -> HarnessTasks:
        assert self._tasks is not None, "open() comes first"
        return self._tasks

    def _harness_model_of(self, model: nn.Module) -> Any:
        """The harness's wrapper of the model, made once."""
        if self._model is not model:
            from lm_eval.models.huggingface import HFLM

            assert self._around is not None, "open() comes first"
            made = HFLM(
                pretrained=model,
                backend="causal",
                tokenizer=deepcopy(self._around.reads),  # the harness sets its padding
                batch_size=self.settings.batch_size,
            )
            made.tok_encode = functools.cache(made.tok_encode)  # the same requests come at every evaluation
            self._use_generation_config(model)
            self._model, self._harness_model = model, made
        return self._harness_model

    def _use_generation_config(self, model: nn.Module) -> None:
        """Generate as the exported checkpoint does: with the base's generation_config.json where it has one."""
        assert self._around is not None
        if (self._around.base / "generation_config.json").is_file():
            from transformers import GenerationConfig

            generation: Any = GenerationConfig.from_pretrained(self._around.base)
            model.generation_config = generation


@contextmanager
def kept_generators() -> Iterator[None]:
    """lm-eval's seeds in every global generator for a while, and then the states that they had before.

    ``lm_eval.simple_evaluate`` seeds Python's, numpy's and torch's generators at every call and leaves them so, which
    would repeat the draws of whoever else draws from them.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    python, legacy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.default_generator.manual_seed(DEFAULT_OTHER_SEED)
        if devices:
            torch.cuda.manual_seed_all(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)
