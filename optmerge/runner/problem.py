"""Everything that a search stands on, opened once: models, data, space, objective, and the resident model.

problem = open_problem(config, root, progress)
table = problem.expand(vector)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from optmerge.calibration.data import Batch, Calibration, Kind, load_calibration
from optmerge.calibration.sampling import Embedder
from optmerge.config.schema import SearchConfig
from optmerge.drivers import check_driver
from optmerge.errors import ConfigError
from optmerge.merging.alternatives import searched_directions, with_choice
from optmerge.merging.coefficients import Static, Table
from optmerge.merging.deltas import Deltas
from optmerge.merging.directions import known_directions, with_hash
from optmerge.merging.engine import Form
from optmerge.merging.placement import Placement
from optmerge.merging.recipe import Direction, Group, ModelEntry, Recipe
from optmerge.merging.spread_engine import AnyEngine, engine_over
from optmerge.models.cache import cache_dir
from optmerge.models.checkpointing import Checkpointing
from optmerge.models.device import pick_dtype
from optmerge.models.family import Family, open_family
from optmerge.models.image_processor import ImageProcessor, image_processor_for
from optmerge.models.resident import ResidentModel
from optmerge.models.spread import Spread
from optmerge.models.tokenizer import tokenizer_for
from optmerge.objective.objective import Objective
from optmerge.objective.outputs import Outputs
from optmerge.records import Progress, Record, SplitName, Vector
from optmerge.runner.curvature import require_curvature
from optmerge.runner.embedding import base_embedder
from optmerge.runner.fisher import Profile, fisher_profile
from optmerge.runner.forward import Forward
from optmerge.runner.geometry import check_regularisers
from optmerge.runner.heads import zero_shot_heads
from optmerge.runner.knowledge import require_cells
from optmerge.runner.memory import plan_memory, worst_plan
from optmerge.runner.spreading import open_spread
from optmerge.runner.stages import Stage, prolonged
from optmerge.runner.statistics import ExpertStatistics, methods_of_labels
from optmerge.runner.terms import open_terms
from optmerge.runner.unseen import unseen_notes
from optmerge.runner.warm_start import start_from
from optmerge.space.build import build_space
from optmerge.space.choices import choosing
from optmerge.space.space import SearchSpace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass
class Problem:
    """A search's models, data, space and objective, as they are in one stage of its schedule.

    Attributes:
        config: The search as it is in this stage.
        directions: All directions that the engine knows: every expert, then whole methods and parts of one.
        columns: Where the space's directions stand among them.
        kept: What is kept on an accelerator, by name: "base" and directions.
        spread: Which device has which part of the model.
        forward: Runs models on batches.
        reads: The tokenizer, or the image processor of models that see images.
        statistics: Of the experts on their calibration inputs, for other directions of the same models.
        checkpointing: A context for gradient evaluations; None where activations are kept.
        stages: All stages of the search, as they begin.
        earlier: The search spaces of the stages before this one, as they began.
        warm_start: Coefficients [G, D] over all directions of the recipe that the search starts from, if it does.
    """

    config: SearchConfig
    family: Family
    resident: ResidentModel
    deltas: Deltas
    engine: AnyEngine
    calibration: Calibration
    objective: Objective
    space: SearchSpace
    directions: tuple[Direction, ...]
    columns: list[int]
    kept: tuple[str, ...]
    spread: Spread
    dtype: torch.dtype
    forward: Forward
    reads: PreTrainedTokenizerBase | ImageProcessor
    statistics: ExpertStatistics
    checkpointing: Checkpointing | None
    stages: tuple[Stage, ...]
    earlier: tuple[SearchSpace, ...] = ()
    warm_start: Table | None = None

    @property
    def device(self) -> torch.device:
        """Where the models' inputs and outputs are."""
        return self.spread.main

    def expand(self, vector: Vector) -> Table:
        """The space's vector as coefficients [G, D] over all directions."""
        return self._over_all(self.space.decode(vector))

    def expand_record(self, record: Record) -> Table:
        """The vector of a record of this stage or an earlier one, as coefficients [G, D] over all directions."""
        assert record.vector is not None, "baselines have no vector"
        space = self.in_stage(record.stage).space
        return self._over_all(prolonged(space.decode(record.vector), space, self.space))

    def in_stage(self, number: int) -> Problem:
        """This problem with the search space of this stage or an earlier one, to make recipes of its vectors."""
        return self if number == len(self.earlier) else replace(self, space=self.earlier[number])

    def _over_all(self, searched: Table) -> Table:
        return _widened(searched, self.columns, len(self.directions))

    def column(self, name: str) -> int:
        """The column of the direction called ``name``."""
        return [direction.name for direction in self.directions].index(name)

    def model(self, task: str) -> nn.Module:
        """The model that judges the inputs of ``task``."""
        return self.forward.model(task)

    def outputs(self, task: str, batch: Batch, layers: Sequence[int] = ()) -> Outputs:
        """What the task's model says about a batch that is on the device, with the outputs of some layers."""
        return self.forward.outputs(task, batch, layers)

    def labelled(self, task: str) -> bool:
        """Whether the report split of ``task`` has labels."""
        return self.calibration.tasks[task].splits["report"].has_labels

    def recipe(self, vector: Vector, created: Mapping[str, Any]) -> Recipe:
        """The recipe of a vector, self-contained."""
        family = self.family

        def entry(name: str) -> ModelEntry:
            checkpoint = family.base if name == "base" else family.experts[name]
            reference = self.config.base if name == "base" else self.config.experts[name]
            return ModelEntry(reference, checkpoint.sha256(), checkpoint.revision)

        groups = tuple(
            Group(
                group.name,
                tuple(disk for parameter in group.parameters for disk in family.disk_names(parameter)),
                group.layer,
                group.kind,
                group.cut,
            )
            for group in self.space.groups
        )
        chosen = self.space.columns_at(vector)
        return Recipe(
            base=entry("base"),
            experts={name: entry(name) for name in family.experts},
            directions=tuple(with_hash(self.directions[self.columns[column]]) for column in chosen),
            groups=groups,
            coefficient_fn=Static(self.space.decode(vector)[:, chosen]),
            method=self.space.method_at(vector) or self.config.method.name,
            heads=family.heads,
            dtype=str(self.dtype).removeprefix("torch."),
            tokenizer=self.config.tokenizer,
            vocabulary=self.config.vocabulary,
            created=created,
        )

    def identity(self, split: SplitName) -> str:
        """A hash of everything that a measurement on a split depends on, beside the coefficients and the terms.

        Other splits do not count, so that searches with fewer fit examples share their baselines.
        """
        data = [
            [
                task,
                entry.expert,
                entry.splits[split].sha256,
                entry.splits[split].labels_sha256,
                self.forward.head_sha256(task),
            ]
            for task, entry in self.calibration.tasks.items()
        ]
        facts = [
            self.family.fingerprint(),
            self.family.heads,
            data,
            str(self.dtype),
            str(self.device),
            self.config.batch_tokens,
            torch.__version__,
            torch.get_num_threads(),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _widened(searched: Table, columns: Sequence[int], count: int) -> Table:
    """Coefficients of the searched directions as coefficients [G, D] of all ``count`` directions."""
    table = np.zeros((len(searched), count))
    table[:, columns] = searched
    return table


def open_problem(
    config: SearchConfig,
    *,
    progress: Progress | None = None,
    form: Form | None = None,
    kept: Sequence[str] | None = None,
    label_readers: Sequence[str] = (),
    devices: Sequence[torch.device] | None = None,
    layout: Mapping[str, int] | None = None,
    made: Mapping[str, Path] = MappingProxyType({}),
    profiles: Sequence[Profile | None] = (),
) -> Problem:
    """Open models and data, and allocate the resident model.

    Args:
        config: With absolute references.
        progress: Told of long work.
        form: How gradients are gathered, for a run that began so; None lets the memory plan choose.
        kept: What stays on an accelerator, likewise: a streamed tensor's gradient is summed up in another order.
        label_readers: Methods that will be made of the same models later, and whose statistics are of labels.
        devices: Those of a worker; None are what the search file says and the machine has.
        layout: Which of several devices has which modules, for a run that began so.
        made: Direction -> folder with its delta, where another process has made it.
        profiles: What another process has measured for the chunks of every stage, likewise.

    Raises:
        UserError: Anything about the models, the data or the combination of settings that cannot work.
    """
    stages = [config.at_stage(number) for number in range(len(config.stages))]
    labelled = False
    for stage in stages:
        objective = Objective(stage.objective, list(config.tasks), dict.fromkeys(config.tasks))
        objective.require_gradient(stage.driver.name)
        labelled |= objective.labelled
    family = open_family(
        config.base,
        config.experts,
        relative_to=Path(),
        heads=config.heads,
        vocabulary=config.vocabulary,
        allow_pickle=config.allow_pickle,
    )
    dtype = pick_dtype(config.dtype, family)
    spread = open_spread(config, family, dtype, devices=devices, layout=layout)
    device = spread.main
    reads = input_reader(config, family, dtype)
    heads = zero_shot_heads(config, family, device)
    embed = base_embedder(config, family, spread, dtype, progress)
    experts = list(family.experts)
    wanted, alternatives = searched_directions(config.directions, experts, config.method, config.alternatives)
    searched = wanted if alternatives is None else alternatives.directions
    directions = known_directions(searched, config.baselines.methods, experts)
    readers = (*methods_of_labels(directions, experts), *label_readers)
    calibration = load_tasks(config, family, reads, labelled=labelled, embed=embed, label_readers=readers)
    del embed  # with the model that it opened, before another one is
    for note in calibration.notes:
        log.info("%s", note)
    num_labels = {name: data.num_labels for name, data in calibration.tasks.items()}
    roles = {name: parameter.role for name, parameter in family.parameters.items()}
    statistics = ExpertStatistics(config, family, calibration, device=device, dtype=dtype, heads=heads)
    deltas = Deltas(family, directions, cache=cache_dir() / "directions", statistics=statistics, made=made)
    untouched = with_choice(deltas.untouched(), alternatives, lambda found: frozenset.intersection(*found))
    opened: list[Stage] = []
    known = profiles or [None] * len(stages)
    for settings, stage, share, profile in zip(config.stages, stages, config.shares, known, strict=True):
        before = opened[-1] if opened else None
        if before is not None and stage.objective == before.config.objective:
            objective = before.objective
        else:
            objective = Objective(stage.objective, list(config.tasks), num_labels)
            open_terms(objective, family, reads)
        require_curvature(stage.driver.name, objective)
        if before is not None and stage.space == before.config.space:
            space = before.space
        else:
            if stage.space.by_fisher and profile is None:
                profile = fisher_profile(stage, progress, spread)
            space = build_space(
                stage.space,
                roles,
                [direction.name for direction in wanted],
                untouched=untouched,
                shapes=family.parameters,
                magnitudes=with_choice(deltas.magnitudes(), alternatives, lambda found: found[0])
                if stage.space.granularity == "chunk-wise"
                else None,
                profile=profile,
                lanes={direction.name: direction.lane for direction in wanted},
            )
            space = space if alternatives is None else choosing(space, alternatives)
        check_regularisers(objective, space)
        check_driver(stage.driver, space.dimension, budget=share)
        require_cells(stage.driver.name, space)
        opened.append(Stage(settings, stage, objective, space, profile))
    memory = worst_plan(
        [plan_memory(s.config, family, directions, s.space, calibration, spread, dtype) for s in opened]
    )
    first = opened[0]
    for note in [*memory.notes, *unseen_notes(family, first.space)]:
        log.warning("%s", note)
    started = None
    if config.space.recipe is not None:
        started = start_from(Path(config.space.recipe), family, first.space, searched, untouched)
        for note in started.notes:
            log.warning("%s", note)
    resident = ResidentModel(family, device=spread, dtype=dtype)
    statistics.collect(deltas.statistics_wanted, resident, progress)
    deltas.prepare(progress)
    columns = [direction.name for direction in directions]
    searched_columns = [columns.index(direction.name) for direction in searched]
    if kept is None:
        kept = (*(["base"] if memory.base_resident else []), *memory.resident)
    engine = engine_over(
        spread.parts(resident.parameters),
        deltas.segments,
        first.space.row_of,
        cuts=first.space.cuts,
        form=form or memory.form or "accumulate",
        placement=Placement("base" in kept, frozenset(columns.index(name) for name in kept if name != "base")),
    )
    return Problem(
        config=first.config,
        family=family,
        resident=resident,
        deltas=deltas,
        engine=engine,
        calibration=calibration,
        objective=first.objective,
        space=first.space,
        directions=directions,
        columns=searched_columns,
        kept=tuple(kept),
        spread=spread,
        dtype=dtype,
        forward=Forward(family, resident, {name: data.expert for name, data in calibration.tasks.items()}, heads),
        reads=reads,
        statistics=statistics,
        checkpointing=Checkpointing(map(resident.model_for, family.experts)) if config.checkpointing else None,
        stages=tuple(opened),
        warm_start=None if started is None else _widened(started.table, searched_columns, len(columns)),
    )


def input_reader(config: SearchConfig, family: Family, dtype: torch.dtype) -> PreTrainedTokenizerBase | ImageProcessor:
    """What makes a model's inputs: a tokenizer, or an image processor where the models see images and nothing else.

    Raises:
        ConfigError: The family is of a kind that no objective can judge.
        ModelError: The member that it is to come from has none.
    """
    if _judged_kind(family) in ("image-classification", "zero-shot-image-classification"):
        return image_processor_for(family, config.tokenizer, dtype=dtype)
    return tokenizer_for(family, config.tokenizer)


def load_tasks(
    config: SearchConfig,
    family: Family,
    reads: PreTrainedTokenizerBase | ImageProcessor,
    *,
    labelled: bool,
    embed: Embedder | None = None,
    label_readers: Sequence[str] = (),
) -> Calibration:
    """The calibration data of a search; fit and select keep labels only when the objective is ``labelled``.

    Without ``embed`` tasks with ``sampling: diverse`` get as many random examples. ``label_readers`` are methods that
    are given the fit split with labels, beside the one that is judged.

    Raises:
        ConfigError: The family is of a kind that no objective can judge.
        DataError: See `load_calibration`.
    """
    return load_calibration(
        config.tasks,
        config.splits,
        tokenizer=reads,
        kind=_judged_kind(family),
        configs={task: family.configs[spec.expert] for task, spec in config.tasks.items()},
        relative_to=Path(),
        keep_labels=frozenset({"fit", "select", "report"} if labelled else {"report"}),
        limit=config.limit,
        embed=embed,
        label_readers=label_readers,
    )


def _judged_kind(family: Family) -> Kind:
    if family.kind == "other":
        raise ConfigError(
            "The experts are neither language models nor classifiers, and a search can judge only these (the vision "
            "towers of CLIP models among them, with heads: zero-shot). `optmerge merge` merges any architecture from a "
            "recipe."
        )
    return family.kind
