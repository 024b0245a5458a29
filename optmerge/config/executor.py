"""Settings of ``executor:``, which says where evaluations run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from optmerge.config.base import Strict
from optmerge.config.drivers import GRADIENT_DRIVERS
from optmerge.config.objectives import task_files


class ExecutorConfig(Strict):
    """Who evaluates: this process, several of this machine, or actors on a Ray cluster."""

    name: Literal["local", "ray"] = Field(
        "local", description="local = this process, or with several workers one process each; ray = a cluster"
    )
    workers: int = Field(1, ge=1, description="evaluations at the same time, each with a model of its own")
    gpus_per_worker: float = Field(
        1.0,
        gt=0,
        description="accelerators that a worker takes where there are any; below 1 several share one (ray); 2 and more "
        "= its model is spread over so many (device_map)",
    )
    address: str = Field(
        "auto",
        min_length=1,
        description="of the Ray cluster: auto = the one that this machine is in, local = one of this machine alone, or "
        "host:port",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of a worker, on a Ray cluster as many cores; null = those of this process, divided by "
        "the workers",
    )
    timeout: float | None = Field(
        None,
        gt=0,
        description="seconds after which an evaluation counts as hung and its worker is replaced; null = never",
    )
    retries: int = Field(
        2, ge=0, description="how often an evaluation is tried again whose worker died, hung or was lost"
    )
    files: Literal["shared", "fetch"] = Field(
        "shared",
        description="shared = workers' machines have models, data and the cache at the same paths; fetch = what a "
        "machine lacks it fetches once from the one that searches, into its own cache",
    )
    node_cache: str | None = Field(
        None,
        min_length=1,
        description="with `files: fetch`, the cache folder on workers' machines, such as /scratch/optmerge; null = the "
        "one that each has anyway",
    )
    deterministic: bool = Field(
        True,
        description="results are recorded and told in the order of the candidates, so that a search finds what it "
        "finds with one worker, and workers wait for the last of a generation; false = they do not wait, and what is "
        "told first depends on who is done first (cma, optuna, natural-niches)",
    )

    @field_validator("address")
    @classmethod
    def _known_form(cls, address: str) -> str:
        if address not in ("auto", "local") and not re.fullmatch(r"[^/\s]+:\d+", address):
            raise ValueError(
                f"address is {address!r}; expected auto (the cluster that this machine is in), local (one of this "
                "machine alone), or host:port of the cluster's head, such as head:6379"
            )
        return address

    @model_validator(mode="after")
    def _ray_alone(self) -> Self:
        if self.name == "local" and "address" in self.model_fields_set and self.address != "auto":
            raise ValueError(
                f"address {self.address!r} is that of a Ray cluster, and the executor is local; set name: ray, or "
                "leave address out"
            )
        return self

    @model_validator(mode="after")
    def _fetched_alone(self) -> Self:
        if self.node_cache is not None and self.files == "shared":
            raise ValueError(
                f"node_cache is {self.node_cache!r}, where files are kept that are fetched, and files is shared; set "
                "files: fetch, or leave node_cache out"
            )
        if self.node_cache is not None and not self.node_cache.startswith(("/", "~")):
            raise ValueError(
                f"node_cache is {self.node_cache!r}, and other machines have no working directory in common; expected "
                "an absolute path, such as /scratch/optmerge or ~/optmerge"
            )
        return self

    @property
    def in_process(self) -> bool:
        """Whether this process evaluates by itself: it could not end an evaluation of its own that hangs."""
        return self.name == "local" and self.workers == 1 and self.timeout is None


def executor_problems(
    executor: Mapping[str, Any], drivers: Sequence[Mapping[str, Any]], objectives: Sequence[Any] = ()
) -> list[str]:
    """What drivers and objectives cannot do with the executor, a sentence each.

    Args:
        executor: Its settings as plain data.
        drivers: Those of the stages, as plain data.
        objectives: Likewise.

    >>> executor_problems({"workers": 4}, [{"name": "optuna", "storage": "sqlite:///study.db"}])[0][:30]
    'executor.workers is 4, and opt'
    """
    problems = []
    workers = executor.get("workers", 1)
    if isinstance(workers, int) and workers > 1 and any(driver.get("storage") is not None for driver in drivers):
        problems.append(
            f"executor.workers is {workers}, and optuna's storage shares its study among runs that each do one trial "
            "after the other. Start one run for each worker, or take storage out."
        )
    named = task_files(objectives) if executor.get("files") == "fetch" else []
    if named:
        problems.append(
            f"executor.files is fetch, and the term lm-eval names the task file {named[0]}, which can name others that "
            "nobody knows of. Set it to shared, and put models, data and task files where all machines have them."
        )
    sequential = [why for why in map(_in_steps, drivers) if why is not None]
    if executor.get("deterministic") is False and drivers and len(sequential) == len(drivers):
        problems.append(
            f"executor.deterministic is false, and {sequential[0]}, so there is nothing to go on with while an "
            "evaluation runs. Leave deterministic out, or use cma, optuna or natural-niches as they are."
        )
    return problems


def _in_steps(driver: Mapping[str, Any]) -> str | None:
    """Why a driver cannot ask for more before it knows what the last was worth."""
    name = driver.get("name", "adam")
    if name in GRADIENT_DRIVERS:
        return f"{name} makes each step from the gradient at the last"
    if name == "cma" and driver.get("batch") is not None:
        return "cma with a batch compares the candidates of a generation on examples of their own"
    if name == "optuna" and driver.get("pruner", "none") != "none":
        return "optuna with a pruner decides from one rung of a trial about the next"
    if name == "optuna" and driver.get("storage") is not None:
        return "optuna with a storage does one trial after the other"
    return None
