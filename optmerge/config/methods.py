"""Settings of the merging methods; the compositions themselves are in ``optmerge.merging``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optmerge.config.base import Strict


class TaskArithmeticConfig(Strict):
    """base + sum of coefficient times task vector (Ilharco et al. 2023, section 2)."""

    name: Literal["task_arithmetic"] = "task_arithmetic"


class IsoCConfig(Strict):
    """Isotropic merging in the common subspace: the summed task vectors with a flat spectrum.

    Marczak et al. 2025, algorithm 1.
    """

    name: Literal["iso-c"] = "iso-c"
    tolerance: float = Field(
        1e-6,
        ge=0,
        lt=1,
        description="singular values below this share of the largest are cut (their directions are arbitrary)",
    )


MethodConfig = Annotated[TaskArithmeticConfig | IsoCConfig, Field(discriminator="name")]
METHOD_CONFIGS: dict[str, type[Strict]] = {"task_arithmetic": TaskArithmeticConfig, "iso-c": IsoCConfig}
