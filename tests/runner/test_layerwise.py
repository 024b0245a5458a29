"""RegMean++ (Nguyen et al. 2025): every layer solved on inputs that came through the layers merged before it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from optmerge import api
from optmerge.config.load import build_config
from optmerge.config.methods import RegMeanPlusPlusConfig
from optmerge.errors import ConfigError, ModelError, RunFailed
from optmerge.merging.engine import one_hot
from optmerge.merging.methods.gram_solve import gram_mean
from optmerge.merging.recipe import Recipe
from optmerge.models.roles import Role
from optmerge.runner.layerwise import LayerwiseMerge
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import search
from optmerge.runner.statistics_cost import layer_inputs_bytes, needs_of, statistics_bytes, statistics_passes
from tests.image_zoo import image_settings, make_image_zoo
from tests.tiny import save_family, sentences
from tests.zoo import make_zoo, zoo_settings

KINDS = {
    "bert": transformers.AutoModelForSequenceClassification,
    "gpt2": transformers.AutoModelForCausalLM,
    "llama": transformers.AutoModelForCausalLM,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "vit": transformers.AutoModelForImageClassification,
}
FOLDERS = {"a": "one", "b": "two"}
METHOD = "regmean++"


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: make_zoo(tmp_path_factory.mktemp(kind), kind) for kind in ("bert", "gpt2", "llama", "t5")}
    for number, name in enumerate(("one", "two")):
        rows = [{"text": text, "back": " ".join(text.split()[::-1][:4])} for text in sentences(90, seed=number)]
        (made["t5"] / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made | {"vit": make_image_zoo(tmp_path_factory.mktemp("vit"), "vit")}


def settings_of(zoo: Path, kind: str, **changes: Any) -> dict[str, Any]:
    if kind == "vit":
        return image_settings(zoo, **changes)
    made = zoo_settings(zoo, **changes)
    for task in made["tasks"].values():
        if kind == "t5":
            task["template"] = {"prompt": "w1 {text}", "completion": "{back}"}
        if kind != "bert":
            del task["label"]
    return made


def opened(settings: dict[str, Any], root: Path, **options: Any) -> Problem:
    return open_problem(absolute_references(build_config(settings, root=root), root), **options)


def values_of(problem: Problem, direction: str = METHOD) -> dict[str, torch.Tensor]:
    """The resident model at scale 1 of a direction."""
    problem.engine.apply(one_hot(len(problem.space.groups), len(problem.directions), problem.column(direction)))
    return {name: parameter.data.clone() for name, parameter in problem.resident.parameters.items()}


def linear(model: nn.Module) -> dict[str, nn.Module]:
    return {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def examples(problem: Problem, expert: str) -> Iterator[Mapping[str, torch.Tensor]]:
    """The fit inputs of a task, one at a time, so that there is no padding."""
    split = problem.calibration.tasks[expert].splits["fit"]
    assert split.size == 24
    for position in range(split.size):
        (batch,) = split.batches(batch_tokens=1, positions=[position])
        yield batch.to("cpu").inputs


def grams_by_hand(problem: Problem, model: PreTrainedModel, expert: str, names: list[str]) -> dict[str, torch.Tensor]:
    """X^T X / tokens of some linear layers, from whole forward passes."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    modules = linear(model)
    hooks = [
        modules[name].register_forward_hook(
            lambda _, inputs, __, rows=seen[name]: rows.append(inputs[0].flatten(0, -2))
        )
        for name in names
    ]
    with torch.no_grad():
        for inputs in examples(problem, expert):
            model(**inputs)
    for hook in hooks:
        hook.remove()
    rows = {name: torch.cat(of).double() for name, of in seen.items()}
    return {name: of.mT @ of / len(of) for name, of in rows.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_the_solution_on_what_the_merged_layers_give_it(zoos: dict[str, Path], kind: str) -> None:
    """By whole passes of real models: merged up to the layer, the expert's from there on."""
    problem = opened(settings_of(zoos[kind], kind, directions=[METHOD], batch_tokens=64), zoos[kind])
    merged = values_of(problem)
    roles = {name: parameter.role for name, parameter in problem.family.parameters.items()}
    layers = sorted({role.layer for role in roles.values() if role.layer is not None})
    experts = {expert: KINDS[kind].from_pretrained(zoos[kind] / folder).eval() for expert, folder in FOLDERS.items()}
    own = {expert: {n: p.data.clone() for n, p in model.named_parameters()} for expert, model in experts.items()}
    after = [name for name in linear(experts["a"]) if name in roles and roles[name].layer is None and name != "shared"]
    solved: set[str] = set()
    for layer in [*layers, None]:
        wanted = [name for name in linear(experts["a"]) if name in roles and roles[name].layer == layer]
        wanted = [name for name in wanted if layer is not None or name in after]
        grams = {}
        for expert, model in experts.items():
            parameters = dict(model.named_parameters())
            for name, role in roles.items():
                done = role.layer is not None and (layer is None or role.layer < layer)
                before = role.layer is None and not _after(name, role)
                parameters[name].data.copy_(merged[name] if done or before else own[expert][name])
            grams[expert] = grams_by_hand(problem, model, expert, wanted)
        for name in wanted:
            flipped = problem.family.parameters[name].input_first
            weights = [own[expert][name].double() for expert in experts]
            weights = [weight.mT for weight in weights] if flipped else weights
            found = merged[name].double().mT if flipped else merged[name].double()
            expected = gram_mean(weights, [grams[expert][name] for expert in experts], (1, 1), shrink=0.95, ridge=1e-6)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4, msg=name)
            assert float((found - sum(weights) / 2).abs().max()) > 0.01, name  # it is not the mean
            solved.add(name)
    rest = set(roles) - solved
    assert len(solved) >= len(layers) * 4
    for name in rest:
        mean = (own["a"][name] + own["b"][name]) / 2
        torch.testing.assert_close(merged[name], mean, rtol=1e-5, atol=1e-6, msg=name)
    assert ("bert.pooler.dense.weight" in solved) == (kind == "bert")
    assert ("lm_head.weight" in solved) == (kind == "llama")
    assert ("classifier.weight" in solved) == (kind == "vit")


def _after(name: str, role: Role) -> bool:
    """Whether a parameter outside the layers is first used after them."""
    ends = ("pooler.", "lm_head.", "classifier.", "ln_f.", "model.norm.", "vit.layernorm.", "decoder.final_layer_norm.")
    assert role.layer is None
    return any(end in name for end in ends)


def same_embeddings(who: str, model: PreTrainedModel) -> None:
    """A ``change`` for `save_family` after which all models have the same embeddings."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "embeddings" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))


def test_the_first_layer_is_regmean_on_inputs_through_the_merged_embeddings(
    zoos: dict[str, Path], tmp_path: Path
) -> None:
    save_family("bert", tmp_path, scale=0.3, change=same_embeddings)
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text((zoos["bert"] / f"{name}.jsonl").read_text())
    directions = [METHOD, {"name": "regmean", "shrink": 0.95}]
    problem = opened(zoo_settings(tmp_path, directions=directions), tmp_path)
    ours, regmean = values_of(problem), values_of(problem, "regmean")
    within = {layer: f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1)}
    for name in ours:
        if "encoder.layer.1" not in name and "pooler.dense.weight" not in name:
            torch.testing.assert_close(ours[name], regmean[name], rtol=1e-5, atol=1e-6)
    assert float((ours[within[1]] - regmean[within[1]]).abs().max()) > 1e-3


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_one_expert_and_identical_experts_are_the_merge(zoos: dict[str, Path], kind: str, same: bool) -> None:
    settings = settings_of(zoos[kind], kind, directions=[METHOD])
    if same:
        settings["experts"]["b"] = settings["experts"]["a"]
        settings["tasks"]["b"]["data"] = settings["tasks"]["a"]["data"]
    else:
        del settings["experts"]["b"], settings["tasks"]["b"]
    problem = opened(settings, zoos[kind])
    for name, value in values_of(problem).items():
        torch.testing.assert_close(value, problem.family.read("a", name), rtol=1e-4, atol=1e-5, msg=name)


def test_batches_and_their_padding_do_not_matter(zoos: dict[str, Path]) -> None:
    few, many = (
        values_of(opened(settings_of(zoos["gpt2"], "gpt2", directions=[METHOD], batch_tokens=size), zoos["gpt2"]))
        for size in (16, 4096)
    )
    for name, value in few.items():
        torch.testing.assert_close(value, many[name], rtol=1e-3, atol=1e-4, msg=name)


def test_others_stay_at_the_base_and_weights_count(zoos: dict[str, Path]) -> None:
    directions = [{"name": METHOD, "others": "base", "weights": {"b": 0.0}}]
    problem = opened(settings_of(zoos["bert"], "bert", directions=directions), zoos["bert"])
    for name, value in values_of(problem).items():
        dense = name.endswith("weight") and len(value.shape) == 2 and "embeddings" not in name
        expected = problem.family.read("a" if dense else "base", name)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_resident_model_of_another_dtype(zoos: dict[str, Path], dtype: str) -> None:
    problem = opened(settings_of(zoos["llama"], "llama", directions=[METHOD], dtype=dtype), zoos["llama"])
    mean = "model.layers.1.mlp.down_proj.weight"
    for name in problem.family.parameters:
        delta = problem.deltas.segments(name)[0].sources[-1]
        assert delta is not None
        assert delta.tensor.dtype == torch.float32  # type: ignore[union-attr]
        assert torch.isfinite(delta.tensor).all()  # type: ignore[union-attr]
    merged = values_of(problem)[mean].float()
    average = (problem.family.read("a", mean) + problem.family.read("b", mean)) / 2
    assert 0.01 < float((merged - average).abs().max()) < 2


@pytest.mark.parametrize("whole", [False, True])
def test_of_the_towers_of_clip_the_layer_and_a_merged_projection_are_solved(tmp_path: Path, whole: bool) -> None:
    zoo = make_image_zoo(tmp_path, "clip", whole=whole)
    problem = opened(image_settings(zoo, heads="zero-shot", directions=[METHOD]), zoo)
    assert ("visual_projection.weight" in problem.family.parameters) == whole
    for name, value in values_of(problem).items():
        mean = (problem.family.read("a", name) + problem.family.read("b", name)) / 2
        dense = (".layers." in name or "projection" in name) and name.endswith("weight") and value.ndim == 2
        assert torch.allclose(value, mean, rtol=1e-5, atol=1e-6) != dense, name


def test_it_is_made_once_and_kept_by_content(zoos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int | None]] = []

    def make(**changes: Any) -> dict[str, torch.Tensor]:
        told.clear()
        settings = settings_of(zoos["gpt2"], "gpt2", directions=[METHOD], **changes)
        return values_of(opened(settings, zoos["gpt2"], progress=lambda *what: told.append(what)))

    first = make()
    size = len(first)
    assert [what for what in told if what[0] == METHOD] == [(METHOD, done + 1, size) for done in range(size)]
    assert not [what for what in told if what[0] == "statistics"]  # none that do not depend on the merge are wanted
    fewer = make(splits={"fit": 12, "select": 16, "report": 30})
    assert told
    assert any(not torch.equal(first[name], fewer[name]) for name in first)
    monkeypatch.setattr(LayerwiseMerge, "stages", lambda self: pytest.fail("it is in the cache"))
    again = make()
    assert not [what for what in told if what[0] == METHOD]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_it_is_searched_beside_task_vectors_and_kept_in_the_run(zoos: dict[str, Path], tmp_path: Path) -> None:
    config = build_config(zoo_settings(zoos["bert"], directions=["experts", METHOD]), root=tmp_path)
    made = search(config, root=tmp_path)
    recipe = Recipe.load(made.folder / "recipe.yaml")
    assert [direction.name for direction in recipe.directions] == ["a", "b", METHOD]
    assert recipe.directions[2].config == RegMeanPlusPlusConfig()
    assert recipe.directions[2].stored is not None
    problem = open_problem(config)
    problem.engine.apply(problem.expand(problem.space.encode(recipe.coefficients)))
    merged = api.merge(made.folder)
    for name in problem.family.parameters:
        (disk,) = problem.family.disk_names(name)
        assert torch.equal(problem.resident.parameters[name].data, merged[disk])


def test_an_expert_without_a_task_is_refused(zoos: dict[str, Path], tmp_path: Path) -> None:
    settings = zoo_settings(zoos["bert"], directions=["experts", METHOD])
    del settings["tasks"]["b"]
    with pytest.raises(ConfigError, match=r"directions: regmean\+\+ needs inputs of every expert, and no task has"):
        build_config(settings, root=tmp_path)


def test_too_little_memory_says_what_to_do(zoos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("made to fail")

    monkeypatch.setattr("optmerge.runner.layerwise.collect_grams", full)
    with pytest.raises(RunFailed, match=r"statistics of the expert a: made to fail\. Set batch_tokens lower than"):
        opened(settings_of(zoos["gpt2"], "gpt2", directions=[METHOD]), zoos["gpt2"])


def test_layers_that_share_their_weights_are_refused(zoos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ALBERT: the layer is not behind when it comes again."""
    model = transformers.models.gpt2.modeling_gpt2.GPT2Model
    start = model.__init__

    def shared(self: Any, *arguments: Any, **named: Any) -> None:
        start(self, *arguments, **named)
        self.register_forward_pre_hook(again)

    def again(module: Any, arguments: object) -> None:
        module.h[0](torch.zeros(1, 1, 16))

    monkeypatch.setattr(model, "__init__", shared)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel cannot be merged layer by layer: one of its layers is run"):
        opened(settings_of(zoos["gpt2"], "gpt2", directions=[METHOD], seed=77), zoos["gpt2"])


def test_the_plan_knows_its_passes_and_what_it_keeps(zoos: dict[str, Path]) -> None:
    problem = opened(settings_of(zoos["gpt2"], "gpt2", directions=[METHOD]), zoos["gpt2"])
    needs = needs_of(problem.directions, ["a", "b"])
    assert needs == {"merged-grams"}
    assert statistics_passes(needs, problem.calibration, experts=2) == 2.0
    tokens = sum(task.splits["fit"].tokens for task in problem.calibration.tasks.values())
    widths = {"a": 16, "b": 16}
    assert layer_inputs_bytes(needs, problem.calibration, widths, 4) == 2 * 4 * 16 * tokens
    assert layer_inputs_bytes({"grams"}, problem.calibration, widths, 4) == 0
    one_layer = 16**2 + 16**2 + 16**2 + 64**2  # c_attn, c_proj and c_fc read 16 numbers, the last c_proj 64
    assert statistics_bytes(needs, problem.family) == 4 * 2 * one_layer
