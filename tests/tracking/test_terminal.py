"""The terminal display: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from optmerge.tracking.terminal import TerminalSink
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
    assert "evaluations 12/20" in text
    assert "\x1b[" in text


def test_no_color(fake) -> None:
    text = _watch(fake, terminal=True, environment={"NO_COLOR": "1"})
    assert "\x1b[3" not in text  # no colour; moving the cursor is no colour
    assert "evaluations 12/20" in text


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
