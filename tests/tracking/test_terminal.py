"""The terminal display: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
from datetime import datetime

import pytest
from rich.console import Console

from optmerge.tracking.standing import Standing
from optmerge.tracking.terminal import TerminalSink, picture
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_rows import RowMaker


def _watch(fake, *, terminal: bool, environment: dict[str, str] | None = None) -> str:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=200, highlight=False, _environ={"TERM": "xterm"} | (environment or {})
    )
    ticks = iter(range(0, 100_000, 3))
    sink = TerminalSink(console, clock=lambda: float(next(ticks)))
    run = fake(evaluations=20)
    run.on_record = sink.record
    for done in range(1, 41):
        sink.progress("teachers", done, 40)
    sink.progress("hashing", 1, None)
    sink.start(run.folder)
    run.baselines().search(12, fail=(3,))
    sink.finish(run.folder, "enough")
    run.close()
    return out.getvalue()


def test_plain_lines(fake) -> None:
    text = _watch(fake, terminal=False)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert sum(line.startswith("teachers: ") for line in lines) == 11  # tenths, not every step
    assert "hashing: 1" in lines
    last = lines[-2]
    assert "evaluations 12/20" in last
    assert "best baseline 0.500 (method:iso-c:1.4)" in last
    assert "1 FAILED" in last
    assert "left" in last
    assert lines[-1] == "stopped: enough"


def test_terminal_shows_bars(fake) -> None:
    text = _watch(fake, terminal=True)
    assert "teachers" in text
    assert "12/20" in text
    assert "\x1b[" in text


def test_no_color(fake) -> None:
    text = _watch(fake, terminal=True, environment={"NO_COLOR": "1"})
    assert "\x1b[3" not in text  # no colour; moving the cursor is no colour
    assert "12/20" in text


def test_resume_starts_from_what_is_there(fake) -> None:
    run = fake(evaluations=20).baselines().search(5)
    out = io.StringIO()
    sink = TerminalSink(Console(file=out, force_terminal=False, width=200))
    sink.start(run.folder)
    assert "going on after 5 evaluations" in out.getvalue()
    run.on_record = sink.record
    run.search(2)
    run.close()
    assert "evaluations 7/20" in sink.line()


def test_time_left_follows_the_tighter_limit(fake) -> None:
    run = fake(settings_update={"budget": {"evaluations": 10_000, "minutes": 1.0}}).baselines().search(10)
    sink = TerminalSink(Console(file=io.StringIO()))
    sink.start(run.folder)
    run.on_record = sink.record
    run.search(3)
    run.close()
    done = run.records[-1].elapsed - [r for r in run.records if r.phase == "baseline"][-1].elapsed
    assert f"about {round(60 - done)} s left" in sink.line()


def test_an_iterate_that_collapsed_is_not_shown_as_the_best_unless_it_may_be(fake) -> None:
    shown = []
    for name, action in (("first", "stop"), ("second", "warn")):
        run = fake(name, settings_update={"alarms": {"collapse": action}}).baselines()
        run.add(phase="select", driver="adam", split="select", value=0.4)
        run.add(phase="select", driver="adam", split="select", value=0.1, alarms={"collapse": "gone"})
        sink = TerminalSink(Console(file=io.StringIO()))
        sink.start(run.folder)
        run.close()
        shown.append(sink.line())
        maker = RowMaker(run.variables, collapsed=action == "warn")
        assert [maker.row(record) for record in run.records][-1]["objective/best"] == (0.1 if action == "warn" else 0.4)
    assert "best select 0.400" in shown[0]
    assert "best select 0.100" in shown[1]


def test_the_rate_is_of_evaluations_of_the_budget(fake) -> None:
    run = fake(evaluations=20).baselines()
    sink = TerminalSink(Console(file=io.StringIO()))
    sink.start(run.folder)
    run.on_record = sink.record
    for _ in range(9):  # a record every 0.7 seconds
        run.add(phase="search", driver="optuna", split="fit", value=0.4, share=0.25)
    run.close()
    assert "2.8 s each" in sink.line()


def test_the_end_says_how_idle_the_workers_were(fake) -> None:
    out = io.StringIO()
    run = fake(evaluations=20)
    (run.folder / "result.json").write_text('{"workers": {"count": 16, "idle": 0.034}}')
    TerminalSink(Console(file=out, width=200, highlight=False)).finish(run.folder, "enough")
    run.close()
    assert out.getvalue().splitlines()[-1] == "16 workers, which evaluated nothing for 3% of their time"


def _picture(fake, width: int, tasks: tuple[str, ...] = ("sentiment", "topics")) -> list[str]:
    run = fake(evaluations=20, tasks=tasks).baselines().search(12, fail=(3,))
    run.add(
        phase="select",
        driver="adam",
        split="select",
        value=0.25,
        per_task=dict.fromkeys(tasks, 0.25),
        signals={f"agreement/{task}": 0.5 + number / 100 for number, task in enumerate(tasks)},
        alarms={"drift": "task topics goes away from its expert on select"},
    )
    run.close()
    standing = Standing()
    standing.begin(RunView.open(run.folder, vectors=False))
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None, _environ={"TERM": "xterm"})
    console.print(picture(standing, since=1.0, now=datetime(2026, 11, 26, 23, 59)))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture(fake, width: int) -> None:
    lines = _picture(fake, width)
    assert len(lines) <= 16
    assert max(map(len, lines)) <= 80
    words = [line.split() for line in lines]
    assert ["failed", "1", "evaluations"] in words
    assert any(line.startswith("evaluations") and line.endswith("12/20") for line in lines)
    assert any(line.startswith("best select  0.250 after 12 (50.0% below the best baseline)") for line in lines)
    assert any(line.startswith("baseline     0.500, method:iso-c:1.4") for line in lines)
    assert any(line.startswith("topics") and " 0.510 " in line and " 0.250 " in line for line in lines)
    assert "ALARM (drift): task topics goes away from its expert on select" in lines


def test_of_many_tasks_those_that_agree_least_have_bars(fake) -> None:
    lines = _picture(fake, 80, tuple(f"task{number:02d}" for number in range(20)))
    shown = [line.split()[0] for line in lines if line.startswith("task0") or line.startswith("task1")]
    assert shown == [f"task{number:02d}" for number in range(12)]
    assert "and 8 more" in lines


def test_no_number_is_cut_in_a_narrow_window(fake) -> None:
    lines = _picture(fake, 40, ("a-task-with-a-long-name", "topics"))
    assert any("0.500" in line and "0.250" in line for line in lines if line.startswith("a-task"))
    assert any("0.510" in line and "0.250" in line for line in lines if line.startswith("topics"))
    assert not any("0…" in line or "0.…" in line for line in lines)


def test_a_window_that_is_too_low_cuts_off_what_matters_least(fake) -> None:
    class Asked:
        viewed = True

        def note(self) -> str:
            return "Finishing."

    out, tasks = io.StringIO(), tuple(f"task{number:02d}" for number in range(12))
    console = Console(file=out, force_terminal=True, width=80, color_system=None, _environ={"TERM": "xterm"})
    sink = TerminalSink(console, interrupt=Asked())
    run = fake(evaluations=20, tasks=tasks)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(3)
    scores = dict.fromkeys(tasks, 0.25)
    run.add(
        phase="select", driver="adam", split="select", value=0.25, per_task=scores, alarms={"drift": "topics goes away"}
    )
    sink.finish(run.folder, "enough")
    run.close()
    last = out.getvalue()[out.getvalue().rindex("Finishing.") :]
    assert last.index("search ") < last.index("ALARM (drift)") < last.index("task00")


def test_the_picture_says_that_it_stops(fake) -> None:
    class Asked:
        viewed = False

        def note(self) -> str:
            return "Finishing." if self.viewed else ""

    out, asked = io.StringIO(), Asked()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    sink = TerminalSink(console, interrupt=asked)
    run = fake(evaluations=20)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines()
    assert asked.viewed  # so that nobody writes over the picture
    sink.finish(run.folder, "interrupted")
    run.close()
    assert "Finishing." in out.getvalue()
    assert not asked.viewed
