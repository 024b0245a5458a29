"""The report: the answer first, and honest in every state."""

from __future__ import annotations

import json

import pytest

from optmerge.tracking.report import ReportSink, render_report, write_report
from optmerge.tracking.view import RunView


def _answer(folder) -> str:
    return render_report(RunView.open(folder)).split("\n\n")[1]


def _edit(run, **changes) -> None:
    path = run.folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_files_of_a_finished_run(fake) -> None:
    run = fake().baselines().search().finish()
    path = write_report(run.folder)
    text = path.read_text()
    for name in ("trajectory.png", "coefficients.png", "results.png", "signals.png"):
        assert f"({name})" in text
        assert (run.folder / name).stat().st_size > 1000
    assert not list(run.folder.glob(".*tmp*"))
    for heading in ("Results", "Accuracy per task", "Trajectory", "What was searched", "Data", "Cost", "How to go on"):
        assert f"## {heading}" in text
    assert str(run.folder.parent) not in text  # no path of this machine
    assert "The search used no labels." in text
    assert "Not transductive" in text
    assert "3 duplicates were dropped" in text
    assert "optmerge export RUN" in text
    assert "optmerge resume" not in text
    assert "96 variables" in text
    assert "the budget of 30 evaluations is used up" in text


def test_a_gain_beyond_luck(fake) -> None:
    answer = _answer(fake().baselines().search().finish().folder)
    assert "**0.827**" in answer
    assert "**beats** the best baseline, `method:iso-c:1.4` (0.815): +1.2 points" in answer
    assert "No merge without a search scores higher" in answer


def test_a_gain_within_the_interval_is_not_called_one(fake) -> None:
    answer = _answer(fake(gain=0.02).baselines().search().finish().folder)
    assert "not distinguishable" in answer
    assert "+0.2 points" in answer
    assert "holds zero" in answer


def test_a_loss_is_said_and_the_better_merge_is_named(fake) -> None:
    answer = _answer(fake(gain=0.001).baselines().search().finish().folder)
    assert "**worse than**" in answer
    assert "A merge that needs no search scores higher: `method:iso-c:1.4` (0.815)" in answer


def test_an_oracle_above_the_search_is_named_as_such(fake) -> None:
    run = fake(gain=0.02).baselines().search().finish()
    rows = json.loads((run.folder / "result.json").read_text())["rows"]
    for row in rows:
        if row["name"] == "uniform:0.2":
            row["mean"] = 0.9
    _edit(run, rows=rows)
    assert "select would not have chosen it: `uniform:0.2` (0.900)" in _answer(run.folder)


def test_without_intervals(fake) -> None:
    run = fake().baselines().search().finish()
    _edit(run, comparison=[])
    assert "no interval is known" in _answer(run.folder)


def test_labelled_and_transductive_searches_say_so(fake) -> None:
    run = fake(settings_update={"objective": {"terms": [{"name": "cross-entropy"}]}}).baselines().search().finish()
    _edit(run, transductive=True)
    text = render_report(RunView.open(run.folder))
    assert "**The search used labels**: the objective's cross-entropy" in text
    assert "**Transductive**" in text


def test_labels_that_only_choose_the_iterate_are_labels_too(fake) -> None:
    chosen = {"terms": [{"name": "entropy"}], "select": [{"name": "accuracy"}]}
    run = fake(settings_update={"objective": chosen}).baselines().search().finish()
    assert "**The search used labels**: the objective's accuracy" in render_report(RunView.open(run.folder))


def test_agreement_is_named_so(fake) -> None:
    text = render_report(RunView.open(fake(labels=False).baselines().search().finish().folder))
    assert "mean agreement on the report split" in text
    assert "not accuracy" in text


@pytest.mark.parametrize(
    ("status", "words"),
    [("interrupted", "**The search was interrupted**"), ("failed", "**The search failed.**")],
)
def test_runs_that_ended_early(fake, status: str, words: str) -> None:
    run = fake().baselines().search(8, fail=(1, 2)).ended(status, "the disk is full")
    text = write_report(run.folder).read_text()
    assert words in text
    assert "the disk is full" in text
    assert "After 8 evaluations" in text
    assert "optmerge resume RUN" in text
    assert "**2 evaluations failed**: out of memory (2 times)" in text
    assert "Best coefficients so far" in text
    assert "method:iso-c:1.4" in text


def test_a_run_before_its_first_evaluation(fake) -> None:
    text = write_report(fake().close().folder).read_text()
    assert "no value on the select split yet" in text
    assert "## Results" not in text


def test_alarms_stand_before_everything_else(fake) -> None:
    run = fake(collapse_at=20).baselines().search().finish()
    text = render_report(RunView.open(run.folder))
    first = text.split("\n\n")[1]
    assert first == ("- **ALARM, collapse** (first after 21 evaluations, 20 times): task sentiment collapses.")
    assert "**beats**" in text.split("\n\n")[2]
    assert "ALARM" not in render_report(RunView.open(fake("healthy").baselines().search().finish().folder))


def test_scores_have_their_intervals(fake) -> None:
    text = render_report(RunView.open(fake().baselines().search().finish().folder))
    assert "0.827 [0.807, 0.847]" in text
    assert "(95 % interval 0.807 to 0.847)" in text.split("\n\n")[1]
    per_task = text.split("## Accuracy per task")[1].split("\n\n")[1]
    assert per_task.splitlines()[-1].count("[") == 3  # two tasks and the mean


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lead": 0.01, "behind": 0.0}, ["The 3 best iterates on select cannot be told apart on report."]),
        ({"lead": 0.002, "behind": 0.0}, ["Its lead on select over the next iterate", "within the noise"]),
        ({"lead": 0.01, "behind": -0.02}, ["rank 2 scores higher on report (+2.0 points", "report never steers"]),
        ({"lead": 0.01, "behind": 0.02}, []),
    ],
)
def test_finalists_are_told_apart_or_not(fake, options: dict, words: list[str]) -> None:
    run = fake().baselines().search().finals(**options).finish()
    answer = _answer(run.folder)
    for word in words:
        assert word in answer
    assert ("told apart" in answer) == (options["behind"] == 0.0)
    assert ("within the noise" in answer) == (options["lead"] < 0.005)
    text = render_report(RunView.open(run.folder))
    assert "## The best iterates on select" in text
    assert "## The best iterates on select" not in render_report(
        RunView.open(fake("one").baselines().search().finish().folder)
    )


def test_runs_of_before_signals_and_intervals(fake) -> None:
    run = fake(signals=False).baselines().search().finish()
    rows = json.loads((run.folder / "result.json").read_text())["rows"]
    for row in rows:
        del row["interval"]
    _edit(run, rows=rows)
    text = write_report(run.folder).read_text()
    assert "signals.png" not in text
    assert "results.png" not in text
    assert "**0.827** mean accuracy on the report split and **beats**" in text


def test_sink_writes_when_the_run_ends(fake) -> None:
    run = fake().baselines().search(4).finish()
    sink = ReportSink()
    sink.start(run.folder)
    sink.finish(run.folder, "done")
    assert (run.folder / "report.md").exists()
