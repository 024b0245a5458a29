"""Settings of ``executor:``, which says where evaluations run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from optmerge.config.base import Strict


class ExecutorConfig(Strict):
    """Who evaluates: this process, several of this machine, or actors on a Ray cluster."""

    name: Literal["local", "ray"] = Field(
        "local", description="local = this process, or with several workers one process each; ray = a cluster"
    )
    workers: int = Field(1, ge=1, description="evaluations at the same time, each with a model of its own")
    gpus_per_worker: float = Field(
        1.0, ge=0, description="accelerators that a worker takes where there are any; below 1 several share one (ray)"
    )
    address: str = Field(
        "auto",
        min_length=1,
        description="of the Ray cluster: auto = the one that this machine is in, local = one of this machine alone, or "
        "host:port",
    )
    timeout: float | None = Field(
        None,
        gt=0,
        description="seconds after which an evaluation counts as hung and its worker is replaced; null = never",
    )
    retries: int = Field(
        2, ge=0, description="how often an evaluation is tried again whose worker died, hung or was lost"
    )
    deterministic: bool = Field(
        True,
        description="results are recorded and told in the order of the candidates, so that a search finds what it "
        "finds with one worker, and workers wait for the last of a generation; false = they do not wait, and what is "
        "told first depends on who is done first (cma, optuna, natural-niches)",
    )

    @model_validator(mode="after")
    def _ray_alone(self) -> Self:
        if self.name == "local" and "address" in self.model_fields_set and self.address != "auto":
            raise ValueError(
                f"address {self.address!r} is that of a Ray cluster, and the executor is local; set name: ray, or "
                "leave address out"
            )
        return self

    @property
    def in_process(self) -> bool:
        """Whether this process evaluates by itself: it could not end an evaluation of its own that hangs."""
        return self.name == "local" and self.workers == 1 and self.timeout is None
