"""The strict base of every configuration model: frozen, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen value object; an unknown key is an error (reworded with near matches in ``config.messages``)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
