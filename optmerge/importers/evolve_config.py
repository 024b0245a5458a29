"""What a configuration of mergekit-evolve says, as plain values with its defaults; no model is opened.

notes = Notes()
config = parse_evolve(read_yaml(text, source="evolve.yml"), source="evolve.yml", notes=notes)
config.genome.models, config.tasks[0].metric
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from optmerge.errors import ConfigError, did_you_mean
from optmerge.importers.mergekit_config import model_reference
from optmerge.importers.notes import Notes

Method = Literal["linear", "task_arithmetic", "ties", "dare_ties", "slerp"]
NEED_BASE = ("task_arithmetic", "ties", "dare_ties")


def _reference(value: object) -> str:
    try:
        return model_reference(value, "the model")
    except ConfigError as problem:
        raise ValueError(str(problem)) from None


def _named_task(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Model = Annotated[str, BeforeValidator(_reference)]


class _Theirs(BaseModel):
    """Like mergekit's own classes these ignore what they do not know; `parse_evolve` notes it."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Genome(_Theirs):
    """What is searched."""

    models: list[Model] = Field(min_length=1)
    merge_method: Method
    base_model: Model | None = None
    tokenizer_source: str | None = None
    layer_granularity: int = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    filters: list[str] | None = None
    smooth: bool = False

    @property
    def normalized(self) -> bool:
        """Whether weights are divided by their sum."""
        return self.normalize if self.normalize is not None else self.merge_method in ("linear", "ties", "dare_ties")


class EvolveTask(_Theirs):
    """One of lm-eval's tasks."""

    name: str
    weight: float = 1.0
    metric: str = "acc,none"


class EvolveConfig(_Theirs):
    """The whole file."""

    genome: Genome
    tasks: list[Annotated[EvolveTask, BeforeValidator(_named_task)]]
    limit: int | None = None
    num_fewshot: int | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True


def parse_evolve(body: object, *, source: str, notes: Notes) -> EvolveConfig:
    """Read a configuration.

    Args:
        body: The YAML's content.
        source: What errors call it.
        notes: Told of keys that mergekit-evolve ignores.

    Raises:
        ConfigError: It is none, or one that mergekit-evolve itself would refuse.
    """
    if not isinstance(body, Mapping) or "genome" not in body:
        hint = ""
        if isinstance(body, Mapping) and "merge_method" in body:
            hint = " It has a merge_method, so it is one of mergekit-yaml: use --from-mergekit."
        raise ConfigError(f"{source} is no configuration of mergekit-evolve: the key genome is missing.{hint}")
    try:
        config = EvolveConfig.model_validate(body)
    except ValidationError as problem:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}, and it is {e['input']!r}" for e in problem.errors()]
        raise ConfigError(f"{source} is no configuration of mergekit-evolve:\n" + "\n".join(lines)) from None
    genome = config.genome
    if genome.merge_method in NEED_BASE and genome.base_model is None:
        raise ConfigError(f"{source}: genome.base_model is missing, and {genome.merge_method} needs a base.")
    if genome.merge_method == "slerp" and (genome.smooth or genome.filters):
        which = "smooth" if genome.smooth else "filters"
        raise ConfigError(f"{source}: genome.{which} and merge_method slerp do not go together in mergekit-evolve.")
    _unknown(body, EvolveConfig, "", notes)
    _unknown(body["genome"], Genome, "genome.", notes)
    for number, task in enumerate(body["tasks"]):
        if isinstance(task, Mapping):
            _unknown(task, EvolveTask, f"tasks[{number}].", notes)
    return config


def _unknown(body: Mapping[Any, Any], model: type[_Theirs], prefix: str, notes: Notes) -> None:
    for key in body:
        if key not in model.model_fields:
            near = did_you_mean(str(key), model.model_fields)
            notes.leave(f"{prefix}{key}", f"mergekit-evolve does not know this key either, and ignores it.{near}")
