"""Every preset says what it is and is a valid objective."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from optmerge.config.load import load_config
from optmerge.config.objectives import TERM_CONFIGS, ExpertKLConfig, ObjectiveConfig
from optmerge.objective import COEFFICIENT_TERMS, TERMS, ModelTerm, Objective, make_term, term_class
from optmerge.objective.whole import WholeModelTerm

FOLDER = Path(__file__).parents[2] / "objectives"
DOCS = Path(__file__).parents[2] / "docs" / "objectives.md"
PRESETS = sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_the_command_of_a_preset_can_be_given(path: Path, tmp_path: Path) -> None:
    lines = [
        line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    (begin,) = [number for number, line in enumerate(lines) if line.startswith("Run:")]
    words = shlex.split(" ".join(lines[begin:]))
    assert words[1:4] == ["optmerge", "search", "search.yaml"]
    assert words[4::2] == ["--set"] * (len(words[4:]) // 2)
    search = tmp_path / "search.yaml"
    task = {"expert": "a", "data": "a.jsonl", "label": "label"}
    search.write_text(
        yaml.safe_dump({"base": "base", "experts": {"a": "a"}, "tasks": {"a": task}, "objective": "expert-kl"}),
        encoding="utf-8",
    )
    assert load_config(search, overrides=words[5::2]).objective == read(path)


def test_the_presets_that_papers_and_habits_ask_for_are_there() -> None:
    assert {path.stem for path in PRESETS} >= {
        "accuracy",
        "cross-entropy",
        "dam",
        "entropy",
        "entropy-guarded",
        "expert-alignment",
        "expert-kl",
        "expert-merging-pp",
        "information-maximisation",
        "lm-eval-example",
        "perplexity",
        "pseudo-label",
    }


def test_dam_has_the_weights_of_its_paper() -> None:
    dam = {term.name: term for term in read(FOLDER / "dam.yaml").terms}
    assert {name: term.weight for name, term in dam.items()} == {
        "expert-kl": 1.0,
        "similarity": 0.01,
        "l1": 1e-6,
        "l2": 1e-6,
    }
    assert isinstance(dam["expert-kl"], ExpertKLConfig)
    assert dam["expert-kl"].temperature == 2.0


def test_entropy_guarded_is_chosen_by_the_experts() -> None:
    select = read(FOLDER / "entropy-guarded.yaml").select
    assert select is not None
    assert [term.name for term in select] == ["expert-kl"]


def test_expert_merging_pp_differs_from_expert_alignment_in_how_it_is_run() -> None:
    assert read(FOLDER / "expert-merging-pp.yaml") == read(FOLDER / "expert-alignment.yaml")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {path.stem}: ")
    for word in ("# Paper:", "# Cost:", "# Run:   optmerge search"):
        assert word in text
    objective = Objective(read(path), ["a"], {"a": 3})
    assert objective.labelled == ("# Labels: of every split" in text)
    assert ("# Labels: none." in text) != objective.labelled
    assert ("has no gradient" in text) != objective.differentiable
    assert ("a gradient step takes two" in " ".join(text.replace("#", "").split())) == objective.two_passes


@pytest.mark.parametrize("name", [*TERMS, *COEFFICIENT_TERMS])
def test_the_documentation_has_every_term_with_its_unit_and_needs(name: str) -> None:
    (row,) = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    term = term_class(name)
    assert not issubclass(term, WholeModelTerm)
    assert cells[2] == term.unit
    if issubclass(term, ModelTerm):
        words = {"labels": "labels", "teacher": "teacher", "hidden": "hidden states"}
        assert {words[need] for need in term.needs} == {word for word in cells[3].split(", ") if word}
        assert ("no gradient" in cells[4]) != term.differentiable
        made = make_term(TERM_CONFIGS[name](name=name))
        assert isinstance(made, ModelTerm)
        assert ("two passes" in cells[4]) == (made.summary and made.differentiable)
        assert ("higher is better" in cells[1]) == term.higher_is_better
    else:
        assert float(cells[3]) == TERM_CONFIGS[name](name=name).weight
