"""Shares of squared norms: MetaGPT's of whole models, VaRM's of tensors (Zhou et al. 2024; Wan et al. 2024)."""

from __future__ import annotations

import pytest
import torch

from optmerge.config.methods import METHOD_CONFIGS, MetaGptConfig, MethodConfig
from optmerge.merging.methods import build_method, vectors
from optmerge.merging.methods.energy import energy, shares
from tests.merging.methods.toy import ToyModels, every_kind, of_deltas, prepared


def merged(name: str, models: ToyModels, **settings: object) -> dict[str, torch.Tensor]:
    config: MethodConfig = METHOD_CONFIGS[name].model_validate(settings)  # type: ignore[assignment]
    method = prepared(config, models)
    return {parameter: method.delta(models, parameter) for parameter in models.names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["metagpt", "varm"])
def test_in_closed_form(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors.RawVectors.__init__, "__kwdefaults__", {"by_rows": False, "limit": 16})
    models = every_kind(3, dtype=dtype)
    taus = {
        parameter: [models.task_vector(expert, parameter).double() for expert in models.experts]
        for parameter in models.names
    }
    weights = {"expert-1": -2.0}
    found = merged(name, models, weights=weights)
    for parameter, values in taus.items():
        counted = list(taus) if name == "metagpt" else [parameter]
        squares = [sum(taus[other][row].square().sum() for other in counted) for row in range(3)]
        total = sum(squares)
        expected = sum(
            weight * square / total * tau for weight, square, tau in zip((1, -2, 1), squares, values, strict=True)
        )
        torch.testing.assert_close(found[parameter].double(), expected, rtol=1e-5, atol=1e-6)


def test_orthogonal_and_of_one_length_they_are_the_mean() -> None:
    models = of_deltas([{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 3.0])}])
    for name in ("metagpt", "varm"):
        assert merged(name, models)["w"].tolist() == [1.5, 1.5]


def test_a_larger_expert_has_more_than_in_proportion() -> None:
    models = of_deltas(
        [{"w": torch.tensor([1.0]), "v": torch.zeros(2)}, {"w": torch.tensor([3.0]), "v": torch.ones(2)}]
    )
    assert merged("varm", models)["w"].item() == pytest.approx(1 / 10 + 27 / 10)
    assert merged("metagpt", models)["w"].item() == pytest.approx(1 / 12 + 33 / 12)
    assert merged("varm", models)["v"].tolist() == [1.0, 1.0]  # of a tensor that it left alone an expert has no part


@pytest.mark.parametrize("factor", [1e-8, 1e8])
def test_scale_equivariant(factor: float) -> None:
    deltas = [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([0.5, 4.0])}]
    for name in ("metagpt", "varm"):
        scaled = of_deltas([{"w": factor * delta["w"]} for delta in deltas])
        torch.testing.assert_close(merged(name, scaled)["w"] / factor, merged(name, of_deltas(deltas))["w"])


def test_shares() -> None:
    assert shares([1.0, 3.0]) == (0.25, 0.75)
    assert shares([0.0, 0.0]) == (0.5, 0.5)
    assert energy([torch.tensor([3.0]), torch.empty(0), torch.full((4,), 1e-30)]) == pytest.approx(9.0)


def test_whole_models_are_read_before_and_progress_is_told() -> None:
    told: list[tuple[str, int, int | None]] = []
    models = every_kind(3)
    method = build_method(MetaGptConfig(), models.experts)
    method.prepare(models, lambda what, done, total: told.append((what, done, total)))
    assert told == [("norms", done, 3) for done in (1, 2, 3)]
