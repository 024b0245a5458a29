"""The Optuna mirror: every fit evaluation once, also after a resume."""

from __future__ import annotations

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optmerge.tracking.optuna_mirror import OptunaMirror


def _study(folder) -> optuna.Study:
    (summary,) = optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(folder / "optuna.journal"))))
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def _searches(run) -> list:
    return [record for record in run.records if record.phase == "search"]


def test_trials_equal_the_trajectory(fake) -> None:
    run = fake(layers=1, tasks=("a", "b"))
    sink = OptunaMirror()
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(8, fail=(2,)).finish()
    sink.finish(run.folder, "done")
    study, records = _study(run.folder), _searches(run)
    assert [trial.value for trial in study.trials] == [record.value for record in records]
    assert [trial.state for trial in study.trials].index(TrialState.FAIL) == 2
    assert study.trials[2].user_attrs["error"] == "out of memory"
    assert study.trials[0].params == dict(zip(run.variables, records[0].vector, strict=True))
    assert study.best_value == min(record.value for record in records if record.value is not None)
    assert study.user_attrs["reason"] == "done"
    assert study.trials[0].distributions[run.variables[0]].high == 2.0
    assert not any(key.startswith("mean/") for key in study.trials[0].user_attrs)  # 48 variables can be read


def test_rungs_are_one_trial_and_pruned_ones_are_marked(fake) -> None:
    run = fake(layers=1).baselines()
    for share, pruned, vector, value in (
        (0.25, False, 0, 0.9),
        (1.0, False, 0, 0.8),
        (0.25, True, 1, 1.2),
        (0.25, False, 2, 0.7),
        (0.5, True, 2, 0.95),
        (1.0, False, 3, 0.6),
    ):
        run.add(
            phase="search",
            driver="optuna",
            split="fit",
            value=value,
            vector=run.vector(vector),
            share=share,
            pruned=pruned,
        )
    OptunaMirror().start(run.folder)
    trials = _study(run.folder).trials
    complete, dropped = TrialState.COMPLETE, TrialState.PRUNED
    assert [trial.state for trial in trials] == [complete, dropped, dropped, complete]
    assert [trial.value for trial in trials] == [0.8, None, None, 0.6]
    assert [trial.intermediate_values for trial in trials] == [{0: 0.9, 1: 0.8}, {0: 1.2}, {0: 0.7, 1: 0.95}, {}]
    assert _study(run.folder).best_value == 0.6


def test_many_variables_bring_group_means(fake) -> None:
    run = fake(layers=2).baselines().search(1)
    OptunaMirror().start(run.folder)
    attributes = _study(run.folder).trials[0].user_attrs
    assert attributes["mean/iso-c"] == pytest.approx(run.vector(0).reshape(-1, 3)[:, 2].mean())
    assert {"mean/sentiment", "mean/layer 0", "mean/layer 1"} <= set(attributes)
    run.close()


def test_resume_rebuilds_without_doubles(fake) -> None:
    run = fake(layers=1).baselines().search(3)
    OptunaMirror().start(run.folder)
    (run.folder / "optuna.journal.lock").symlink_to(run.folder / "optuna.journal")  # as a killed process leaves it
    sink = OptunaMirror()
    sink.start(run.folder)
    run.on_record = sink.record
    run.search(2)
    sink.record(run.records[-2])  # told twice
    sink.finish(run.folder, "done")
    run.close()
    assert [trial.user_attrs["record"] for trial in _study(run.folder).trials] == [r.id for r in _searches(run)]


def test_verbosity_of_optuna_is_left_as_it_was(fake) -> None:
    before = optuna.logging.get_verbosity()
    OptunaMirror().start(fake(layers=1).close().folder)
    assert optuna.logging.get_verbosity() == before
