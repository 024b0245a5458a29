"""The strict base of every configuration model (frozen, unknown keys and infinite numbers refused), and named ones."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen value object; an unknown key is an error (reworded with near matches in ``config.messages``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def named(value: object) -> object:
    """A bare name stands for the mapping with that name and every default."""
    return {"name": value} if isinstance(value, str) else value
