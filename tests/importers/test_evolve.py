"""Configurations of mergekit-evolve as search files: as many variables as there, and files that can be read."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from optmerge.config.load import load_config
from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError
from optmerge.importers.evolve import search_from_evolve, tensors_of
from optmerge.importers.evolve_config import Genome, parse_evolve
from optmerge.importers.evolve_space import Tensor, genome_space
from optmerge.importers.notes import Notes
from optmerge.importers.translation import Translation
from optmerge.models.roles import Role
from optmerge.space.build import build_space

Made = tuple[SearchConfig, Translation]
TWO = {"models": ["one", "two"], "base_model": "base"}
THREE = {"models": ["one", "two", "three"]}
TASKS = [{"name": "spartqa_train", "weight": 1.0, "metric": "acc,none"}, "my_task"]

# The kinds of genome that its documentation shows, in models of ours -> variables per model
GENOMES: dict[str, tuple[dict[str, Any], int]] = {
    "one group": ({**TWO, "merge_method": "task_arithmetic"}, 1),
    "filters": ({**TWO, "merge_method": "ties", "layer_granularity": 2, "filters": ["self_attn", "mlp"]}, 6),
    "filters alone": ({**TWO, "merge_method": "task_arithmetic", "filters": ["norm", "layers.1."]}, 3),
    "every layer": ({**THREE, "merge_method": "linear", "layer_granularity": 1}, 4),
    "dare": ({**TWO, "merge_method": "dare_ties", "layer_granularity": 4, "allow_negative_weights": True}, 1),
    "slerp": ({**TWO, "models": ["base", "two"], "merge_method": "slerp", "layer_granularity": 2}, 2),
    "slerp of three": ({**THREE, "merge_method": "slerp", "layer_granularity": 1}, 4),
    "normalized": ({**TWO, "merge_method": "task_arithmetic", "normalize": True, "layer_granularity": 2}, 2),
    "smooth": ({**TWO, "merge_method": "task_arithmetic", "layer_granularity": 1, "smooth": True}, 4 + 3),
    "smooth without groups": ({**TWO, "merge_method": "task_arithmetic", "smooth": True}, 1),
}


@pytest.fixture
def translate(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """``translate(genome, limit=100)`` gives what the search file says, and the translation."""
    monkeypatch.chdir(zoo)

    def call(genome: dict[str, Any], **body: Any) -> Made:
        file, to = tmp_path / "evolve.yml", tmp_path / "search.yaml"
        file.write_text(yaml.safe_dump({"genome": genome, "tasks": TASKS, **body}))
        made = search_from_evolve(file, to=to)
        to.write_text(made.text)
        return load_config(to), made

    return call


@pytest.mark.parametrize("name", GENOMES)
def test_as_many_variables_as_the_genome_has(name: str, translate: Callable[..., Made], zoo: Path) -> None:
    genome, groups = GENOMES[name]
    config, made = translate(genome)
    names = list(config.experts)
    tensors = tensors_of(str(zoo / "base"), zoo, allow_pickle=False)
    outside = {"model.embed_tokens.weight": "embedding", "model.norm.weight": "final-norm", "lm_head.weight": "head"}
    roles = {tensor.name: Role(outside.get(tensor.name, "mlp"), tensor.layer) for tensor in tensors}  # type: ignore[arg-type]
    space = build_space(config.space, roles, names)
    searched = len(names) - (config.base in config.experts.values())  # the base has nothing to search
    assert len(space.names) == groups * searched
    assert config.driver.name == "cma"
    assert config.budget.evaluations == 100
    assert config.space.bounds[0] == (-1.0 if genome.get("allow_negative_weights") else 0.0)
    text = " ".join(line.lstrip("# ") for line in made.text.splitlines() if line.startswith("#"))
    assert all(f"{key}: {value}" in text for key, value in (made.notes.carried | made.notes.left).items())


def test_a_genomes_groups_are_the_spaces(translate: Callable[..., Made]) -> None:
    """Embeddings ride with the first group, what is behind the layers with the last, and the first filter counts."""
    genome = {**TWO, "merge_method": "task_arithmetic", "layer_granularity": 2, "filters": ["proj", "mlp"]}
    config, _ = translate(genome)

    def tie(name: str) -> str | None:
        return next(rule.tie for rule in reversed(config.space.rules) if fnmatchcase(name, rule.match))

    assert tie("model.embed_tokens.weight") == "layers 0-1"
    assert tie("model.layers.1.input_layernorm.weight") == "layers 0-1"
    assert tie("model.layers.1.mlp.up_proj.weight") == "layers 0-1 proj"
    assert tie("model.layers.2.self_attn.q_proj.weight") == "layers 2-3 proj"
    assert tie("lm_head.weight") == "layers 2-3"


def test_tasks_are_terms_in_comments_that_can_be_taken(translate: Callable[..., Made], tmp_path: Path) -> None:
    _, made = translate(
        {**TWO, "merge_method": "task_arithmetic"}, limit=50, num_fewshot=2, apply_chat_template=False, shuffle=True
    )
    lines = made.text.splitlines()
    start = lines.index("# objective:")
    terms = [line.removeprefix("# ") for line in lines[start : start + 4]]
    taken = made.text.replace("objective: expert-kl", "\n".join(terms))
    (tmp_path / "search.yaml").write_text(taken)
    first, second = load_config(tmp_path / "search.yaml").objective.terms
    assert first.tasks == ["tasks/spartqa_train.yaml"]
    assert (second.metric, second.limit, second.num_fewshot, second.chat_template) == ("acc,none", 50, 2, False)
    assert "shuffle" in made.notes.left


def test_what_ignores_or_refuses(translate: Callable[..., Made]) -> None:
    _, made = translate({**TWO, "merge_method": "task_arithmetic", "granularity": 2}, limmit=3, random_init=True)
    assert {"genome.granularity", "limmit", "random_init"} <= made.notes.left.keys()
    with pytest.raises(ConfigError, match="layer_granularity is 3 and the models have 4 layers"):
        translate({**TWO, "merge_method": "task_arithmetic", "layer_granularity": 3})
    _, made = translate({**TWO, "merge_method": "task_arithmetic", "filters": ["conv"]})
    assert "genome.filters conv" in made.notes.left


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"merge_method": "ties"}, "use --from-mergekit"),
        ([], "the key genome is missing"),
        ({"genome": {"models": ["a"], "merge_method": "ties"}, "tasks": []}, "base_model is missing, and ties needs"),
        ({"genome": {"models": ["a"], "merge_method": "tise"}, "tasks": []}, r"genome.merge_method: .*'tise'"),
        (
            {"genome": {"models": ["a", "b"], "merge_method": "slerp", "smooth": True}, "tasks": []},
            "do not go together",
        ),
        ({"genome": {"models": [3], "merge_method": "linear"}, "tasks": []}, r"genome.models.0"),
        ({"genome": {"models": ["a"], "merge_method": "linear"}}, "tasks: Field required"),
    ],
)
def test_what_is_no_such_configuration(body: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_evolve(body, source="evolve.yml", notes=Notes())


def test_layers_with_two_digits() -> None:
    tensors = [Tensor("embed", "embed", "before"), *(Tensor(f"h.{n}.w", f"h.{n}.w", "layer", n) for n in range(24))]
    genome = Genome(models=["a"], merge_method="linear", layer_granularity=12)
    space, _ = genome_space(genome, tensors)
    assert [rule["match"] for rule in space["rules"]] == [
        "embed",
        "h.[0-9].*",
        "h.1[0-1].*",
        "h.1[2-9].*",
        "h.2[0-3].*",
    ]
