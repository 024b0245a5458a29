"""Search files: presets, precedence, round trip, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.drivers import AdamConfig, CmaConfig
from optmerge.config.load import build_config, dump_config, load_config
from optmerge.config.methods import IsoCConfig
from optmerge.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "runs" / "examples"
Data = dict[str, Any]


def build(data: Data, *overrides: str, root: Path = Path()) -> Any:
    return build_config(data, root=root, overrides=overrides)


def problems(data: Data, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build(data, *overrides)
    return str(caught.value)


def test_names_of_presets_and_short_forms_are_resolved(data: Data) -> None:
    data["driver"], data["directions"] = "cma", ["experts", "iso-c"]
    config = build(data)
    assert config.space.granularity == "tensor-wise"
    assert config.objective.terms[0].name == "expert-kl"
    assert config.driver == CmaConfig()
    assert config.directions == ["experts", IsoCConfig()]


def test_presets_by_path_and_with_changes(data: Data, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("granularity: layer-wise\nbounds: [0, 1]\n")
    data["space"] = "mine.yaml"
    assert build(data, root=tmp_path).space.bounds == (0, 1)
    data["space"] = {"preset": "mine.yaml", "bounds": [0, 3]}
    space = build(data, root=tmp_path).space
    assert (space.granularity, space.bounds) == ("layer-wise", (0, 3))
    data["space"] = {"granularity": "model-wise"}
    assert build(data).space.granularity == "model-wise"


def test_precedence_is_default_preset_file_override(data: Data) -> None:
    assert build(data).driver.beta1 == 0.9
    data["space"] = {"preset": "tensor-wise", "start": 0.2}
    config = build(data, "space.bounds=[-1, 1]", "driver.lr=1e-2", "budget.evaluations=null", "budget.minutes=3")
    assert config.space.start == 0.2
    assert config.space.bounds == (-1, 1)
    assert config.driver == AdamConfig(lr=0.01)
    assert config.budget.evaluations is None


def test_overrides_go_into_presets_and_short_forms(data: Data) -> None:
    data["driver"], data["directions"] = "cma", ["experts", "iso-c"]
    config = build(
        data, "driver.sigma=0.2", "objective.terms.0.temperature=2", "directions.1.tolerance=0.5", "allow_pickle=false"
    )
    assert config.driver.sigma == 0.2
    assert config.objective.terms[0].temperature == 2
    assert config.directions[1].tolerance == 0.5
    del data["driver"]
    assert build(data, "driver.lr=0.5").driver == AdamConfig(lr=0.5)


def test_building_leaves_its_input_alone(data: Data) -> None:
    before = copy.deepcopy(data)
    build(data, "driver.lr=0.5", "experts.third=x")
    assert data == before


def test_dump_round_trips(data: Data, tmp_path: Path) -> None:
    data["directions"] = ["experts", {"name": "iso-c", "tolerance": 1e-7}]
    data["space"] = {"preset": "layer-wise", "rules": [{"match": "embedding", "freeze": 0}]}
    config = build(data)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config
    assert yaml.safe_load(dump_config(config)) == config.model_dump(mode="json")


def test_label_values_are_text(data: Data) -> None:
    data["tasks"]["topic"]["labels"] = {0: 1, True: 2, "spam": 3}
    assert build(data).tasks["topic"].labels == {"0": 1, "True": 2, "spam": 3}


def test_everything_wrong_is_told_at_once(data: Data) -> None:
    data |= {"sead": 1, "dtype": "float3", "tokenizer": "bas"}
    data["tasks"]["topic"]["txt"] = data["tasks"]["topic"].pop("label")
    data["driver"] = {"name": "adam", "lr": -1, "betta1": 0.5}
    data["splits"] = {"fit": 1.5, "select": "some"}
    text = problems(data, "objective.terms.0.weigth=2")
    for line in [
        "has 9 problems:",
        "sead: unknown key. Did you mean 'seed'",
        'dtype is "float3"; expected one of auto, float32, bfloat16, float16',
        "tokenizer is 'bas'; expected 'base' or an expert's name (sentiment, topic). Did you mean 'base'?",
        "tasks.topic.txt: unknown key. Did you mean 'text'?",
        "driver.lr is -1; expected a number above 0 (step size, in units of a coefficient).",
        "driver.betta1: unknown key for adam. Did you mean 'beta1'",
        "splits.fit: 1.5 is no size; give a count (1, 2, ...) or a share between 0 and 1",
        'splits.select is "some"; expected a number',
        "objective.terms.0.weigth: unknown key for expert-kl. Did you mean 'weight'?",
    ]:
        assert line in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("space=tensor-wis", "space is 'tensor-wis'; expected one of adamerging, adarank, chunk-wise"),
        ("space=tensor-wis", "Did you mean 'tensor-wise'"),
        ("objective=expert_kl", "Did you mean 'expert-kl' or 'expert-alignment'?"),
        ("space=other/space.yaml", "there is no file other/space.yaml"),
        ("space={preset: 3}", "space.preset is 3; expected a name or a path."),
        ("space.bounds=[1, 0]", "bounds [1.0, 0.0] are not in increasing order"),
        ("space.start=5", "start 5.0 lies outside bounds"),
        ("space.start=best", "expected one of best-baseline, closed-form or a number"),
        ("driver=adm", 'driver is "adm"; expected one of adam, adamw, sgd, '),
        ("driver=adm", "Did you mean 'adam' or 'adamw'?"),
        ("driver=null", "driver is null; expected a mapping"),
        ("directions=[expert]", 'directions.0 is "expert"; expected one of experts, average,'),
        ("directions=[]", "directions is []; expected at least one entry"),
        ("experts.base=x", "the name 'base' stands for the base model"),
        (
            "tasks.topic.expert=topik",
            "tasks.topic.expert is 'topik'; expected one of the experts (sentiment, topic). Did",
        ),
        ("tasks.topic.labels={a: b}", 'tasks.topic.labels.a is "b"; expected a whole number'),
        ("tracking=offline", "expected a mapping with wandb, to, project, entity, group, tags"),
        ("memory=12potatoes", "memory: '12potatoes' is no amount of memory; expected auto, or an amount such as 12GB"),
        ("lr=0.5", "lr: unknown key. It belongs to method.lr or driver.lr."),
        ("budget={evaluations: null}", "every limit is null, so the search would never end"),
        ("driver={name: cma, population: 400}", "driver.population is 400, more than budget.evaluations (300)"),
        ("driver={name: cma, sigma: .inf}", "driver.sigma is Infinity; expected a finite number"),
        ("driver.lr=.inf", "driver.lr is Infinity; expected a finite number"),
        ("base=null", "base is null; expected text (folder, or hub id[@revision])."),
        ("objective=accuracy", "driver is adam, which needs a gradient, and the objective's term accuracy has none."),
        (
            "objective.task_weights={topc: 2}",
            "objective.task_weights.topc: there is no such task (sentiment, topic). Did",
        ),
        ("driver.lr", "expected a dotted key, '=' and a value"),
        ("base.name=x", "base is 'zoo/base', which has no parts to set"),
        ("objective.terms.4.weight=1", "objective.terms is a list of 1; expected a position from 0 to 0"),
        ("driver.lr=[1", "--set driver.lr, line 1"),
    ],
)
def test_each_mistake_has_its_message(data: Data, override: str, message: str) -> None:
    assert message in problems(data, override)


def test_missing_keys_say_what_they_are(data: Data) -> None:
    del data["base"], data["tasks"]["topic"]["data"]
    text = problems(data)
    assert "base: missing; expected text (folder, or hub id[@revision])." in text
    assert "tasks.topic.data: missing; expected text (jsonl" in text


def test_newer_version_is_refused_with_advice(data: Data) -> None:
    data["version"], data["unheard"] = 2, True
    text = problems(data)
    assert "says version 2" in text
    assert "pip install --upgrade optmerge" in text
    assert "unheard" not in text


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("- 1\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "latin.yaml").write_bytes(b"base: \xff\n")
    for name, message in {
        "serch.yaml": "Did you mean .*search.yaml",
        "nothing.txt": "optmerge init",
        "search.yaml": "expected a mapping",
        "empty.yaml": "is empty",
        "latin.yaml": "UTF-8",
        ".": "is a folder",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["base", "experts", "tasks", "space", "objective", "driver", "splits", "directions", "x"]),
        _plain,
    )
)
def test_no_data_ends_in_a_traceback(data: Data) -> None:
    with pytest.raises(ConfigError):
        build(data)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/search.yaml")), ids=lambda path: path.parent.name)
def test_every_committed_example_is_valid(path: Path) -> None:
    assert load_config(path).tasks
