"""Statistics of real experts on their data, against loops over transformers' models; labels, keys and the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from optmerge.calibration.batches import Batch
from optmerge.config.load import build_config
from optmerge.config.methods import METHOD_CONFIGS, Facts, Need
from optmerge.config.methods.base import LABELLED
from optmerge.errors import DataError, ModelError
from optmerge.runner.likelihoods import generator_for, predicted
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.statistics import ExpertStatistics
from tests.image_zoo import image_settings, make_image_zoo
from tests.runner.test_labels_unused import changed
from tests.tiny import save_family, sentences
from tests.zoo import make_zoo, zoo_settings

FOLDERS = {"a": "one", "b": "two"}
Settings = Callable[..., dict[str, Any]]


def opened(settings: dict[str, Any]) -> Problem:
    return open_problem(build_config(settings, root=Path()))


def statistics_of(problem: Problem, *needs: Need) -> ExpertStatistics:
    made = ExpertStatistics(
        problem.config, problem.family, problem.calibration, device=problem.device, dtype=problem.dtype
    )
    made.collect(needs, problem.resident)
    return made


def one_by_one(problem: Problem, expert: str, *, labels: bool = False) -> Iterator[Batch]:
    task = problem.calibration.tasks[expert]
    split = task.labelled if labels else task.splits["fit"]
    assert split is not None
    for position in range(split.size):
        (batch,) = split.batches(batch_tokens=1, positions=[position])
        yield batch


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Problem, ExpertStatistics]]:
    """Every statistic of the classifiers of a small zoo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        zoo = make_zoo(tmp_path_factory.mktemp("zoo"), "bert")
        problem = opened(zoo_settings(zoo, directions=["led"], splits={"fit": 8, "select": 8, "report": 8}))
        needs: list[Need] = ["fisher", "saliency", "base-saliency", "output-grams", "logit-distance"]
        yield zoo, problem, statistics_of(problem, *needs)


def classifier(zoo: Path, expert: str, body: str) -> nn.Module:
    """A model with one's body and an expert's own head."""
    made: Any = AutoModelForSequenceClassification.from_pretrained(zoo / FOLDERS[expert]).eval()
    if body == "base":
        base = AutoModelForSequenceClassification.from_pretrained(zoo / "base")
        made.bert.load_state_dict(base.bert.state_dict())
    model: nn.Module = made
    return model


def gradients(model: nn.Module, scalar: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}


def test_fisher_of_a_classifier_is_exact_over_its_classes(
    classifiers: tuple[Path, Problem, ExpertStatistics],
) -> None:
    zoo, problem, statistics = classifiers
    for expert in FOLDERS:
        model = classifier(zoo, expert, expert)
        sums: dict[str, Tensor] = {}
        for batch in one_by_one(problem, expert):
            log_probs = torch.log_softmax(model(**batch.inputs).logits[0], -1)
            for log_prob in log_probs:
                for name, gradient in gradients(model, log_prob).items():
                    sums[name] = sums.get(name, torch.zeros(())) + log_prob.detach().exp() * gradient**2 / 8
        checked = 0
        for name in problem.family.parameters:
            found = statistics.statistic("fisher", expert, name)
            if name in sums:
                assert found is not None
                torch.testing.assert_close(found, sums[name], rtol=1e-3, atol=1e-8)
                checked += bool(found.any())
        assert checked > 20


@pytest.mark.parametrize(("need", "whose"), [("saliency", "expert"), ("base-saliency", "base")])
def test_saliency_of_the_expert_and_of_the_base_with_its_head(
    classifiers: tuple[Path, Problem, ExpertStatistics], need: Need, whose: str
) -> None:
    zoo, problem, statistics = classifiers
    model = classifier(zoo, "a", "base" if whose == "base" else "a")
    weights = dict(model.named_parameters())
    sums: dict[str, Tensor] = {}
    for batch in one_by_one(problem, "a", labels=True):
        assert batch.targets is not None
        loss = nn.functional.cross_entropy(model(**batch.inputs).logits, batch.targets)
        for name, gradient in gradients(model, loss).items():
            sums[name] = sums.get(name, torch.zeros(())) + (weights[name] * gradient).detach().abs() / 8
    for name in problem.family.parameters:
        if name in sums:
            found = statistics.statistic(need, "a", name)
            assert found is not None
            torch.testing.assert_close(found, sums[name], rtol=1e-3, atol=1e-7)


def test_distances_of_logits(classifiers: tuple[Path, Problem, ExpertStatistics]) -> None:
    zoo, problem, statistics = classifiers
    own, other = classifier(zoo, "a", "a"), classifier(zoo, "a", "a")
    foreign = AutoModelForSequenceClassification.from_pretrained(zoo / "two")
    other.get_submodule("bert").load_state_dict(foreign.bert.state_dict())
    distances = []
    with torch.no_grad():
        for batch in one_by_one(problem, "a"):
            distances.append(float((own(**batch.inputs).logits - other(**batch.inputs).logits).norm()))
    found = statistics.statistic("logit-distance", "a", "b")
    assert found is not None
    assert float(found) == pytest.approx(sum(distances) / 8, rel=1e-4)
    assert statistics.statistic("logit-distance", "a", "a") is None


def test_the_matrices_of_outputs_tell_a_biases_fisher_information(
    classifiers: tuple[Path, Problem, ExpertStatistics],
) -> None:
    """Of a layer that sees one row per example, the diagonal is the Fisher information of its bias."""
    _, problem, statistics = classifiers
    name = "bert.pooler.dense"
    assert f"{name}.weight" in problem.family.parameters
    for expert in FOLDERS:
        gram = statistics.statistic("output-grams", expert, f"{name}.weight")
        fisher = statistics.statistic("fisher", expert, f"{name}.bias")
        assert gram is not None
        assert fisher is not None
        torch.testing.assert_close(gram.diagonal(), fisher, rtol=1e-3, atol=1e-9)
        assert torch.equal(gram, gram.mT)


def test_fisher_of_a_language_model_draws_its_tokens(language_zoo: Path, language_settings: Settings) -> None:
    problem = opened(language_settings(splits={"fit": 6, "select": 8, "report": 8}))
    statistics = statistics_of(problem, "fisher")
    model = AutoModelForCausalLM.from_pretrained(language_zoo / "one").eval()
    generator = generator_for(problem.config.seed, "a")
    sums: dict[str, Tensor] = {}
    for batch in one_by_one(problem, "a"):
        (scalar,) = predicted(model(**batch.inputs).logits, batch, generator)
        for name, gradient in gradients(model, scalar).items():
            sums[name] = sums.get(name, torch.zeros(())) + gradient**2 / 6
    assert set(sums) == set(problem.family.parameters)  # the tied head is there once
    for name, expected in sums.items():
        found = statistics.statistic("fisher", "a", name)
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-7)


def test_labels_are_kept_apart_and_for_who_says_so(settings: Settings) -> None:
    split = {"splits": {"fit": 6, "select": 8, "report": 8}}
    without = opened(settings(directions=["experts"], **split))
    with_labels = opened(settings(directions=["experts", "led"], **split))
    for problem in (without, with_labels):
        for task in problem.calibration.tasks.values():
            assert not task.splits["fit"].has_labels
            assert all(batch.targets is None for batch in task.splits["fit"].batches(batch_tokens=64))
    for name, task in with_labels.calibration.tasks.items():
        assert without.calibration.tasks[name].labelled is None
        assert task.labelled is not None
        assert task.labelled.has_labels
        assert task.labelled.keys == task.splits["fit"].keys
        assert task.sha256 == without.calibration.tasks[name].sha256
    assert any("the labels of fit are read by led" in note for note in with_labels.calibration.notes)


def test_only_statistics_of_labels_depend_on_them(settings: Settings, tmp_path: Path) -> None:
    split = {"directions": ["led"], "splits": {"fit": 6, "select": 8, "report": 8}}
    usual = opened(settings(**split))
    other = opened(changed(settings(**split), tmp_path / "permuted", "permuted"))
    for need in ("grams", "fisher", "output-grams", "logit-distance", "saliency", "base-saliency"):
        keys = [statistics_of(problem).key([need]) for problem in (usual, other)]
        assert (keys[0] != keys[1]) == (need in LABELLED), need


def test_every_method_declares_its_labels() -> None:
    for name, config in METHOD_CONFIGS.items():
        assert config.facts.labels == bool(LABELLED.intersection(config.facts.needs)), name
    with pytest.raises(ValueError, match="declare labels=True"):
        Facts(paper="Doe 2025", cost="one pass", needs=("saliency",))


def test_without_a_label_column_it_says_which_method_wants_it(settings: Settings, tmp_path: Path) -> None:
    for method in ("led", "sens"):
        wanted = settings(method=method)
        del wanted["tasks"]["b"]["label"]
        with pytest.raises(DataError, match=rf"tasks\.b\.label: missing; the method {method} reads labels.*fisher"):
            make_plan(build_config(wanted, root=tmp_path), root=tmp_path)
        wanted["tasks"]["b"]["label"] = "labl"
        with pytest.raises(DataError, match=rf"the method {method} reads labels.*'label'"):
            make_plan(build_config(wanted, root=tmp_path), root=tmp_path)


def test_the_seed_matters_where_something_is_drawn(settings: Settings) -> None:
    split = {"splits": {"fit": 6, "select": 8, "report": 8}}
    first, second = (statistics_of(opened(settings(seed=seed, **split))) for seed in (0, 1))
    for need in ("grams", "logit-distance", "fisher", "output-grams"):
        assert (first.key([need]) == second.key([need])) == (need in ("grams", "logit-distance")), need


def test_what_is_drawn_for_an_expert_is_not_given_to_one_of_another_name(settings: Settings) -> None:
    made = settings(splits={"fit": 6, "select": 8, "report": 8})
    renamed = made | {"experts": {("law" if name == "a" else name): path for name, path in made["experts"].items()}}
    renamed["tasks"] = {
        name: task | {"expert": "law" if task.get("expert", name) == "a" else task.get("expert", name)}
        for name, task in made["tasks"].items()
    }
    usual, other = (statistics_of(opened(one)) for one in (made, renamed))
    for need in ("grams", "fisher", "output-grams"):
        assert (usual.key([need]) == other.key([need])) == (need == "grams"), need


def test_another_version_may_measure_otherwise(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    made = statistics_of(opened(settings(splits={"fit": 6, "select": 8, "report": 8})))
    before = made.key(["grams"])
    monkeypatch.setattr("optmerge.runner.statistics.version", lambda _: "99.0")
    assert made.key(["grams"]) != before


def test_statistics_that_overflow_are_refused_and_not_kept(settings: Settings, tmp_path: Path) -> None:
    made = settings(splits={"fit": 6, "select": 8, "report": 8})
    model = AutoModelForSequenceClassification.from_pretrained(made["experts"]["a"])
    model.bert.encoder.layer[0].intermediate.dense.weight.data *= 1e25
    model.save_pretrained(tmp_path / "large")
    made["experts"]["a"] = str(tmp_path / "large")
    problem = opened(made)
    for _ in range(2):  # the second time nothing is in the cache
        with pytest.raises(ModelError, match=r"The grams of bert.*expert a's data.*overflow in float32.*large weights"):
            statistics_of(problem, "grams")


def test_what_is_in_the_cache_is_not_measured_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = opened(settings(splits={"fit": 6, "select": 8, "report": 8}))
    once = statistics_of(problem, "fisher", "logit-distance")
    monkeypatch.setattr(ExpertStatistics, "_measured", lambda *_: pytest.fail("it is in the cache"))
    again = statistics_of(problem, "fisher", "logit-distance")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    for need, of in (("fisher", name), ("logit-distance", "b")):
        kept, made = again.statistic(need, "a", of), once.statistic(need, "a", of)  # type: ignore[arg-type]
        assert kept is not None
        assert made is not None
        assert torch.equal(kept, made)


ALL: tuple[Need, ...] = ("fisher", "saliency", "base-saliency", "output-grams", "logit-distance")


def seq2seq(folder: Path) -> dict[str, Any]:
    save_family("t5", folder, scale=0.3)
    for number, name in enumerate(FOLDERS.values()):
        rows = [{"text": text, "back": " ".join(text.split()[::-1])} for text in sentences(60, seed=number)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = zoo_settings(folder)
    for task in made["tasks"].values():
        del task["label"]
        task["template"] = {"prompt": "w1 {text}", "completion": "{back}"}
    return made


def clip(folder: Path) -> dict[str, Any]:
    return image_settings(make_image_zoo(folder, "clip"), heads="zero-shot")


@pytest.mark.parametrize("make", [seq2seq, clip])
def test_encoders_with_decoders_and_zero_shot_heads(make: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    """Every statistic of every layer is there, finite, and not nothing; merges of them can be made."""
    changes = {"directions": ["fisher", "mats", "led", "sens"], "splits": {"fit": 6, "select": 8, "report": 8}}
    problem = opened({**make(tmp_path), **changes})
    statistics = ExpertStatistics(
        problem.config,
        problem.family,
        problem.calibration,
        device=problem.device,
        dtype=problem.dtype,
        heads=problem.forward._heads,
    )
    statistics.collect(ALL, problem.resident)
    layers = [name for name in problem.family.parameters if "layer" in name or "block" in name]
    matrices = [name for name in layers if len(problem.family.parameters[name].shape) == 2]
    assert len(matrices) >= 6
    for need, names in (*((need, layers) for need in ALL[:3]), ("output-grams", matrices)):
        found = [statistics.statistic(need, "a", name) for name in names]
        present = [value for value in found if value is not None]
        assert len(present) > 0.8 * len(names), need
        assert all(bool(torch.isfinite(value).all()) for value in present), need
        assert sum(bool(value.any()) for value in present) > 0.8 * len(names), need
    distance = statistics.statistic("logit-distance", "a", "b")
    assert distance is not None
    assert distance > 0
    for direction in problem.directions:
        if direction.kind == "method":
            deltas = [problem.deltas._methods.delta(direction, name) for name in matrices]
            assert all(delta is not None and bool(torch.isfinite(delta).all()) for delta in deltas), direction.name
            assert any(bool(delta.any()) for delta in deltas if delta is not None), direction.name
