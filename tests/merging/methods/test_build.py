"""Configurations become methods; what does not fit the experts is refused in one paragraph."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from optmerge.config.methods import (
    METHOD_CONFIGS,
    BreadcrumbsConfig,
    BreadcrumbsTiesConfig,
    CustomMethodConfig,
    DareConfig,
    DareTiesConfig,
    DellaConfig,
    DellaLinearConfig,
    DogeConfig,
    IsoCConfig,
    LinearConfig,
    MetaGptConfig,
    MethodConfig,
    PcbConfig,
    RegMeanConfig,
    RegMeanPlusPlusConfig,
    SlerpConfig,
    TaskArithmeticConfig,
    TiesConfig,
    TiesSplitConfig,
    TsvMConfig,
    VarmConfig,
    WidenConfig,
    Wudi2Config,
    WudiConfig,
)
from optmerge.errors import ConfigError
from optmerge.merging.methods import BUILDERS, build_method

EXPERTS = ("law", "medicine")


def test_every_configuration_has_a_method() -> None:
    assert set(BUILDERS) == {*METHOD_CONFIGS.values(), CustomMethodConfig}
    for config in METHOD_CONFIGS.values():
        assert build_method(config(), EXPERTS).weights  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        LinearConfig(weights={"medicin": 1.0}),
        TaskArithmeticConfig(weights={"medicin": 1.0}),
        TiesConfig(weights={"medicin": 1.0}),
        DareConfig(weights={"medicin": 1.0}),
        DareTiesConfig(weights={"medicin": 1.0}),
        IsoCConfig(weights={"medicin": 1.0}),
        TiesSplitConfig(weights={"medicin": 1.0}),
        TsvMConfig(weights={"medicin": 1.0}),
        RegMeanConfig(weights={"medicin": 1.0}),
        RegMeanPlusPlusConfig(weights={"medicin": 1.0}),
        BreadcrumbsConfig(weights={"medicin": 1.0}),
        BreadcrumbsTiesConfig(weights={"medicin": 1.0}),
        DellaConfig(weights={"medicin": 1.0}),
        DellaLinearConfig(weights={"medicin": 1.0}),
        PcbConfig(weights={"medicin": 1.0}),
        VarmConfig(weights={"medicin": 1.0}),
        MetaGptConfig(weights={"medicin": 1.0}),
        WidenConfig(weights={"medicin": 1.0}),
        DogeConfig(weights={"medicin": 1.0}),
        WudiConfig(weights={"medicin": 1.0}),
        Wudi2Config(weights={"medicin": 1.0}),
    ],
)
def test_a_weight_for_an_unknown_expert(config: MethodConfig) -> None:
    with pytest.raises(
        ConfigError, match=rf"{re.escape(config.name)}\.weights\.medicin: .*law, medicine.*Did you mean 'medicine'"
    ):
        build_method(config, EXPERTS)


@pytest.mark.parametrize(
    "config",
    [
        LinearConfig(weights={"law": -1.0}),
        TiesConfig(weights={"law": 0.0, "medicine": 0.0}),
        DareTiesConfig(weights={"law": 0.0, "medicine": 0.0}),
        RegMeanConfig(weights={"law": 0.0, "medicine": 0.0}),
        RegMeanPlusPlusConfig(weights={"law": 0.0, "medicine": 0.0}),
        BreadcrumbsTiesConfig(weights={"law": 0.0, "medicine": 0.0}),
        DellaConfig(weights={"law": 0.0, "medicine": 0.0}),
    ],
)
def test_weights_that_cannot_be_divided_by(config: MethodConfig) -> None:
    with pytest.raises(ConfigError, match="add up to 0"):
        build_method(config, EXPERTS)


def test_weights_left_out_are_one() -> None:
    assert build_method(TaskArithmeticConfig(weights={"medicine": -0.5}), EXPERTS).weights == (1.0, -0.5)
    assert build_method(LinearConfig(weights={"medicine": 3.0}), EXPERTS).weights == (0.25, 0.75)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ties", {"density": 1.1}),
        ("ties", {"weights": {"law": -1.0}}),
        ("ties", {"scope": "layer"}),
        ("dare", {"drop": 1.0}),
        ("dare", {"weights": {"law": float("inf")}}),
        ("slerp", {"t": -0.1}),
        ("regmean", {"shrink": 2.0}),
        ("regmean", {"others": "sum"}),
        ("regmean++", {"shrink": -0.1}),
        ("regmean++", {"others": "sum"}),
        ("iso-c", {"others": "matrix"}),
        ("average", {"weights": {"law": 1.0}}),
        ("breadcrumbs", {"outliers": 1.0}),
        ("breadcrumbs-ties", {"weights": {"law": -1.0}}),
        ("della", {"drop": 0.1, "epsilon": 0.2}),
        ("della-linear", {"drop": 0.9, "epsilon": 0.1}),
        ("pcb", {"density": 0.0}),
        ("pcb", {"clip": 0.5}),
        ("sce", {"selected": "nowhere"}),
        ("sce", {"weights": {"law": 1.0}}),
    ],
)
def test_settings_outside_of_their_range(name: str, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        METHOD_CONFIGS[name].model_validate(settings)


def test_a_method_that_is_not_linear_has_no_expert_deltas() -> None:
    from tests.merging.methods.toy import every_kind

    models = every_kind(2)
    for config in (TiesConfig(), SlerpConfig(), IsoCConfig(), RegMeanConfig(), LinearConfig(normalize=False)):
        with pytest.raises(NotImplementedError, match="not linear"):
            build_method(config, models.experts).expert_deltas(models, "norm.weight")
