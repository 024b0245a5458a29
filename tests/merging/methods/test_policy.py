"""What is no matrix gets what a setting says, in every method of matrices; docs/methods.md has the defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from optmerge.config.methods import METHOD_CONFIGS, MethodConfig
from tests.merging.methods.toy import KINDS, every_kind, prepared

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"
OF_MATRICES = {name for name, config in METHOD_CONFIGS.items() if "others" in config.model_fields}
FACTORS = {"mean": 0.5, "sum": 1.0, "base": 0.0}
CASES = [
    (name, rule)
    for name in sorted(OF_MATRICES)
    for rule in FACTORS
    if rule in get_args(METHOD_CONFIGS[name].model_fields["others"].annotation)
]
EMBEDDING = {name for name in OF_MATRICES if "embeddings" in METHOD_CONFIGS[name].model_fields}


def written() -> dict[str, tuple[str, str | None]]:
    """Method -> the defaults of others and embeddings, as the page has them."""
    section = PAGE.read_text().split("## What is not a matrix")[1].split("\n## ")[0]
    table = section.split("| method | `others` | `embeddings` |")[1]
    found: dict[str, tuple[str, str | None]] = {}
    for row in table.strip().splitlines()[1:]:
        if not row.startswith("|"):
            break
        names, others, embeddings = (re.findall("`(.+?)`", cell) for cell in row.strip("|").split("|"))
        found |= {name: (others[0], embeddings[0] if embeddings else None) for name in names}
    return found


def test_the_page_has_the_defaults() -> None:
    assert written() == {
        name: (METHOD_CONFIGS[name]().others, getattr(METHOD_CONFIGS[name](), "embeddings", None))  # type: ignore[attr-defined]
        for name in OF_MATRICES
    }


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_plain_rules_are_the_same_in_every_method(name: str, rule: str) -> None:
    models = every_kind(2)
    fields = [field for field in ("others", "embeddings") if field in METHOD_CONFIGS[name].model_fields]
    config: MethodConfig = METHOD_CONFIGS[name].model_validate(dict.fromkeys(fields, rule))  # type: ignore[assignment]
    method = prepared(config, models)
    for parameter, kind in KINDS.items():
        plain = kind.structure == "vector" or (kind.role in ("embedding", "head") and name in EMBEDDING)
        if not plain or models.statistic("grams", models.experts[0], parameter) is not None:
            continue
        total = models.task_vector("expert-0", parameter) + models.task_vector("expert-1", parameter)
        delta = method.delta(models, parameter)
        if name == "opcm":  # it gives the whole model the experts' mean norm afterwards
            if total.numel() and rule != "base":
                torch.testing.assert_close(delta / delta.norm(), total / total.norm())
            else:
                assert not torch.count_nonzero(delta)
            continue
        torch.testing.assert_close(delta, FACTORS[rule] * total, msg=parameter)
