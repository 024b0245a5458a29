"""Runs that share a study, one after the other in this process; `tests/runner/test_postgres.py` has them at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunInterrupted
from optmerge.records import Record, Trajectory
from optmerge.runner.problem import open_problem
from optmerge.runner.search import Run, resume, search
from optmerge.runner.shared_study import search_hash

Settings = Callable[..., dict[str, Any]]


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def searched(folder: Path) -> list[Record]:
    return [record for record in Trajectory.read(folder).records if record.phase == "search"]


def stop_after(calls: int) -> Callable[[], str | None]:
    asked = iter(range(10**6))
    return lambda: "asked to" if next(asked) >= calls else None


@pytest.fixture
def shared(settings: Settings, tmp_path: Path) -> Settings:
    """A search whose study is in a file."""
    driver = {"name": "optuna", "startup": 4, "storage": f"sqlite:///{tmp_path / 'studies.db'}"}
    return lambda **changes: settings(**{"driver": driver, "alarms": {"collapse": "warn"}, **changes})


def test_equal_searches_meet_in_one_study_and_an_interrupted_run_joins_again(shared: Settings, tmp_path: Path) -> None:
    baselines = 9  # questions whether to stop before the search begins, at least
    with pytest.raises(RunInterrupted):
        run(shared(), tmp_path / "first", stop=stop_after(baselines + 3))
    begun = searched(tmp_path / "first" / "run")
    assert 0 < len(begun) < 8
    second = run(shared(), tmp_path / "second")
    assert len(searched(second.folder)) == 8 - len(begun)
    assert second.result["reason"] == "optuna stopped by itself: study has the 8 trials of the budget"
    again = resume(tmp_path / "first" / "run")
    assert len(searched(again.folder)) == len(begun), "nothing is left to do"
    assert again.recipe is not None
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'studies.db'}")
    assert summary.study_name.startswith("optmerge-")
    trials = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{tmp_path / 'studies.db'}").trials
    complete = {trial.number: trial.value for trial in trials if trial.state == TrialState.COMPLETE}
    recorded = {int(record.info["trial"]): record.value for record in (*searched(second.folder), *begun)}
    assert complete == recorded
    assert len(complete) == 8


def test_another_objective_or_another_name_is_another_study(shared: Settings, tmp_path: Path) -> None:
    few = {"evaluations": 2}
    run(shared(budget=few), tmp_path / "one")
    run(shared(budget=few, objective={"terms": [{"name": "entropy"}]}), tmp_path / "two")
    named = shared(budget=few)["driver"] | {"study": "mine"}
    run(shared(budget=few, driver=named), tmp_path / "three")
    studies = optuna.get_all_study_summaries(f"sqlite:///{tmp_path / 'studies.db'}")
    assert [study.n_trials for study in studies] == [2, 2, 2]
    assert sum(study.study_name == "mine" for study in studies) == 1


SEARCHES: tuple[dict[str, Any], ...] = (
    {},
    {"method": {"name": "dare", "drop": 0.5}},
    {"method": {"name": "dare", "drop": 0.4}},
    {"directions": ["experts", {"name": "ties", "density": 0.5}]},
    {"directions": ["experts", {"name": "ties", "density": 0.4}]},
    {"space": {"granularity": "layer-wise", "normalise": "sum"}},
    {"space": {"granularity": "layer-wise", "rules": [{"match": "embedding", "freeze": 0.0}]}},
    {"space": {"granularity": "layer-wise", "rules": [{"match": "embedding", "freeze": 1.0}]}},
    {"schedule": [{"driver": "cma", "examples": 8}]},
    {"schedule": [{"driver": "cma", "examples": 9}]},
    {"schedule": [{"driver": "cma", "examples": 8}], "seed": 1},
)


def test_searches_whose_values_differ_have_different_studies(settings: Settings, tmp_path: Path) -> None:
    hashes = [hash_of(settings(**changes), tmp_path) for changes in SEARCHES]
    assert len(set(hashes)) == len(SEARCHES)
    alike = {"driver": "cma", "baselines": {"grid": [0.3], "methods": ["ties"]}, "budget": {"evaluations": 3}}
    assert hash_of(settings(**alike), tmp_path) == hashes[0]


def hash_of(settings: dict[str, Any], root: Path) -> str:
    if "schedule" in settings:
        del settings["driver"]
    return search_hash(open_problem(build_config(settings, root=root)), stage=0)


def test_a_storage_that_cannot_be_opened_leaves_nothing_behind(settings: Settings, tmp_path: Path) -> None:
    driver = {"name": "optuna", "storage": f"sqlite:///{tmp_path / 'no' / 'such' / 'folder.db'}"}
    with pytest.raises(ConfigError, match=r"driver.storage .* cannot be opened: unable to open database file"):
        run(settings(driver=driver), tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "url",
    ["postgresql://me:hunter2@db/studies", "postgresql://db/studies?password=hunter2", "mysql://me:hunter2@db/studies"],
)
def test_a_password_is_refused_and_not_repeated(settings: Settings, tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"has a password in it.*\$\{STUDY_PASSWORD\}") as caught:
        run(settings(driver={"name": "optuna", "storage": url}), tmp_path)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        build_config(settings(), root=tmp_path, overrides=["driver.name=optuna", f"driver.storage={url}"])
    assert "hunter2" not in str(caught.value)


def test_a_password_of_the_environment_is_in_no_file(
    shared: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY_FILE", "hunter2")  # SQLite has no password; a part of its path stands for one
    driver = {"name": "optuna", "startup": 4, "storage": f"sqlite:///{tmp_path}/${{STUDY_FILE}}.db"}
    made = run(shared(driver=driver, budget={"evaluations": 2}), tmp_path)
    assert (tmp_path / "hunter2.db").exists()
    assert "${STUDY_FILE}" in (made.folder / "search.yaml").read_text()
    for path in made.folder.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    assert json.loads((made.folder / "manifest.json").read_text())["seed"] == 0
