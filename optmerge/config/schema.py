"""The search file: what a user writes, as pydantic models. Loading and presets are in ``config.load``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, ValidationError, model_validator

from optmerge.config.agreement import name_problems
from optmerge.config.alarms import AlarmsConfig
from optmerge.config.alternatives import (
    IN_PARTS,
    Alternative,
    Entries,
    OneOfConfig,
    choice_of_parts,
    read_alternatives,
)
from optmerge.config.amounts import amount_bytes
from optmerge.config.base import Strict, named
from optmerge.config.device_map import DeviceMap
from optmerge.config.drivers import AdamConfig, DriverConfig
from optmerge.config.executor import ExecutorConfig
from optmerge.config.methods import MethodConfig, TaskArithmeticConfig
from optmerge.config.objectives import ObjectiveConfig
from optmerge.config.spaces import SpaceConfig
from optmerge.config.spectral import DirectionConfig
from optmerge.config.stages import EVALUATIONS, StageConfig
from optmerge.config.tasks import SplitsConfig, TaskConfig

VERSION = 1  # of the search file's format


class BudgetConfig(Strict):
    """When a search stops; the first limit that is reached decides and is recorded."""

    evaluations: int | None = Field(
        EVALUATIONS, ge=1, description="evaluations on the fit split; baselines do not count"
    )
    minutes: float | None = Field(None, gt=0, description="wall-clock minutes of search, summed over resumes")
    target: float | None = Field(None, description="stop when the select value is at or below this")
    patience: int | None = Field(None, ge=1, description="stop after this many select scores without improvement")
    select_every: int = Field(1, ge=1, description="score select every this many generations or gradient steps")
    finalists: int = Field(
        3, ge=1, description="so many of the best iterates on select are scored on report; select's choice stays first"
    )
    front: int = Field(
        8,
        ge=0,
        description="so many of the merges that no other beats on every task are scored on select at the end, and on "
        "report those that none beats there either; 0 = none",
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.evaluations is None and self.minutes is None and self.target is None and self.patience is None:
            raise ValueError("every limit is null, so the search would never end; set evaluations or minutes")
        return self


class BaselinesConfig(Strict):
    """What is scored before the search, by the same evaluator."""

    grid: list[float] = Field([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0], description="uniform task-arithmetic coefficients")
    method_grid: list[float] = Field(
        [0.8, 1.0, 1.2, 1.4, 1.6], description="scales of each direction that is a whole method"
    )
    methods: list[Annotated[MethodConfig, BeforeValidator(named)]] = Field(
        default_factory=list, description="whole methods scored as baselines beside those among the directions"
    )
    closed_form: bool = Field(
        False,
        description="also score the coefficients that best reproduce each expert's layer outputs on its fit inputs, a "
        "least-squares solve per group, layer or model; costs one forward pass of every expert, K^2 matrix products "
        "per expert and layer, a select score per form, emphasis and strength, and a report score per form",
    )
    closed_form_emphasis: list[FiniteFloat] = Field(
        [0.0, 1.0, 2.0],
        min_length=1,
        description="how the closed form weighs experts within a layer: by this power of how much each changes the "
        "layer's outputs, times its error as a share of that",
    )
    closed_form_ridge: list[Annotated[FiniteFloat, Field(ge=0)]] = Field(
        [0.0, 0.1, 1.0],
        min_length=1,
        description="strengths that draw the closed form to the best uniform coefficient, in units of its mean "
        "curvature",
    )


class TrackingConfig(Strict):
    """Weights & Biases, or trackio in its place."""

    wandb: Literal["online", "offline", "disabled"] = Field("disabled", description="where W&B logs go")
    to: Literal["wandb", "trackio"] = Field(
        "wandb", description="trackio keeps the search on this machine instead; wandb stays disabled then"
    )
    project: str = Field("optmerge", description="project at W&B or trackio")
    entity: str | None = Field(None, description="W&B team or user")
    group: str | None = Field(None, description="group of runs; null = the driver's shared study, if it has one")
    tags: list[str] = Field(default_factory=list, description="W&B tags beside driver, space and objective")

    @model_validator(mode="after")
    def _one_of_them(self) -> TrackingConfig:
        if self.to == "trackio" and self.wandb != "disabled":
            raise ValueError(
                f"to is trackio, which keeps everything on this machine, and wandb is {self.wandb}. Leave wandb out "
                "for trackio, or leave to out for W&B."
            )
        return self


_Searched = Annotated[DirectionConfig | OneOfConfig, Field(discriminator="name")]
Direction = Literal["experts"] | Annotated[_Searched, BeforeValidator(named)]


def _task_vectors() -> list[Direction]:
    return ["experts"]


def _auto_or_amount(text: str) -> str:
    if text != "auto":
        amount_bytes(text)
    return text


def _sum_of_parts(method: MethodConfig) -> MethodConfig:
    """Refuse what cannot be searched by scaling each expert's part of it."""
    if method.name not in IN_PARTS:
        raise ValueError(
            f"{method.name} is not a sum of one part per expert, so there is nothing for coefficients to scale; "
            f"expected one of {', '.join(IN_PARTS)}. Search along the whole method instead, with "
            f"`directions: [experts, {method.name}]`."
        )
    if getattr(method, "weights", None) is not None:
        raise ValueError(
            f"the weights of {method.name} are what is searched. Leave them out, or make it a direction: "
            f"`directions: [experts, {{name: {method.name}, weights: ...}}]`."
        )
    return method


class SearchConfig(Strict):
    """A whole search file, presets resolved."""

    version: Literal[1] = Field(1, description="of the search file's format")
    base: str = Field(description="folder, or hub id[@revision]")
    experts: dict[str, str] = Field(min_length=1, description="name -> folder, hub id[@revision], or base+adapter")
    tasks: dict[str, TaskConfig] = Field(min_length=1, description="calibration data")
    method: Annotated[MethodConfig, AfterValidator(_sum_of_parts), BeforeValidator(named)] = Field(
        TaskArithmeticConfig(),
        description="what 'experts' among the directions stands for: task_arithmetic = the task vectors; dare, "
        "ties-split or tsv-m = what that method makes of each",
    )
    methods: Annotated[Entries, AfterValidator(choice_of_parts)] | None = Field(
        None,
        description="instead of `method`, several among which the driver chooses, each a name or a mapping; of a "
        "setting that has a list (`density: [0.1, 0.2, 0.4]`) or the word `searched` it also chooses the value",
    )
    directions: list[Direction] = Field(
        default_factory=_task_vectors, min_length=1, description="what gets coefficients"
    )
    heads: Literal["auto", "own", "merged", "zero-shot"] = Field(
        "auto",
        description="own: each task keeps its expert's head; merged: the head is merged like any tensor; zero-shot: "
        "CLIP's vision towers are merged, and the names of a task's classes make its head; auto: merged where "
        "possible, else own",
    )
    text_model: str = Field(
        "base",
        description="with zero-shot heads, whose text tower reads the names of classes: base, or the folder or hub id "
        "of a CLIP model",
    )
    vocabulary: Literal["refuse", "base", "common"] = Field(
        "refuse",
        description="when tokenizers or numbers of embedding rows differ: refuse = say how and stop; base = merge rows "
        "by number, ignoring those that the base has not; common = merge the rows of tokens that all models have, by "
        "token; the merged model has the base's vocabulary",
    )
    space: SpaceConfig = Field(SpaceConfig(), description="which coefficients: a preset's name, a path, or a mapping")
    objective: ObjectiveConfig = Field(description="what a good merge is: a preset's name, a path, or a mapping")
    driver: Annotated[DriverConfig, BeforeValidator(named)] = Field(
        AdamConfig(), description="who searches: a name, or a mapping with a name"
    )
    schedule: list[StageConfig] | None = Field(
        None,
        min_length=1,
        description="instead of `driver`, stages that follow one another, each from the best on select of the one "
        "before: a preset's name, a path, or a list",
    )
    splits: SplitsConfig = Field(SplitsConfig(), description="examples per task for each purpose")
    baselines: BaselinesConfig = Field(BaselinesConfig(), description="what is scored before the search")
    tokenizer: str = Field("base", description="whose tokenizer and chat template: base or an expert's name")
    budget: BudgetConfig = Field(BudgetConfig(), description="when the search stops")
    alarms: AlarmsConfig = Field(AlarmsConfig(), description="when a search counts as collapsed, and what happens then")
    seed: int = Field(0, ge=0, description="every generator of the run is derived from it")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    device_map: DeviceMap | None = Field(
        None,
        description="spread the model over several CUDA devices, in whole layers: auto or balanced = alike shares; "
        "sequential = the first devices are filled first; or a mapping of module prefixes to numbers of devices; null "
        "= one device, or balanced where executor.gpus_per_worker is above 1",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the resident model; auto = the base's"
    )
    limit: int | None = Field(
        None, ge=1, description="look at no more than this many examples per task and split, to try things out"
    )
    batch_tokens: int = Field(
        4096, ge=1, description="most padded tokens in one forward pass; halved when memory runs out"
    )
    memory: Annotated[str, AfterValidator(_auto_or_amount)] = Field(
        "auto", description="most memory that may be used on the device, such as 12GB; auto = what is free at the start"
    )
    checkpointing: bool = Field(
        False,
        description="gradient evaluations keep only each layer's inputs and run it again on the way back: less "
        "memory, about a third more time, the same result",
    )
    allow_pickle: bool = Field(
        False, description="read pytorch_model.bin files, which can run code; off unless you trust them"
    )
    executor: Annotated[ExecutorConfig, BeforeValidator(named)] = Field(
        ExecutorConfig(), description="where evaluations run: a name, or a mapping with a name"
    )
    tracking: TrackingConfig = Field(TrackingConfig(), description="Weights & Biases")
    output: str = Field("runs/search", description="folder of the run")

    @property
    def closed_form(self) -> bool:
        """Whether closed-form baselines are scored."""
        return self.baselines.closed_form or self.space.start == "closed-form"

    @property
    def alternatives(self) -> tuple[Alternative, ...]:
        """What ``methods`` lists, or ``one-of`` among the directions; none where nothing is chosen."""
        wholes = next((entry for entry in self.directions if isinstance(entry, OneOfConfig)), None)
        if wholes is not None:
            return read_alternatives(wholes.methods, whole=True)
        return () if self.methods is None else read_alternatives(self.methods)

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The stages of the schedule; a search without one has a single stage."""
        return (StageConfig(driver=self.driver),) if self.schedule is None else tuple(self.schedule)

    @property
    def shares(self) -> tuple[int | None, ...]:
        """What each stage may take of the budget's evaluations; None where nothing but the clock limits it."""
        shares: list[int | None] = []
        left = self.budget.evaluations
        for stage in self.stages:
            shares.append(min((share for share in (stage.evaluations, left) if share is not None), default=None))
            left = None if left is None or shares[-1] is None else left - shares[-1]
        return tuple(shares)

    def at_stage(self, number: int) -> SearchConfig:
        """The search as it is in one stage: its driver, granularity and objective stand where the search's do."""
        if self.schedule is None:
            return self
        stage = self.stages[number]
        changes: dict[str, Any] = {"driver": stage.driver, "schedule": None}
        if stage.granularity is not None:
            changes["space"] = self.space.at_granularity(stage.granularity)
        if stage.objective is not None:
            changes["objective"] = stage.objective
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        unused = {"driver"} if self.schedule is not None and "driver" not in self.model_fields_set else None
        problems = name_problems(self.model_dump(exclude=unused))
        for number in range(len(self.stages)):
            try:
                self.at_stage(number)
            except ValidationError as error:
                reason = error.errors()[0]
                problems.append(f"schedule.{number}.granularity: {reason.get('ctx', {}).get('error', reason['msg'])}.")
        if problems:
            raise ValueError("\n".join(problems))
        return self
