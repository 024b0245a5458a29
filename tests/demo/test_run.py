"""The demo from end to end on tiny archives: made once, continued after an interruption, refused where it must be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optmerge.demo import plan as plans
from optmerge.demo import run, zoo
from optmerge.demo.assets import pip_download
from optmerge.demo.plan import DemoPlan, demo_plan
from optmerge.demo.recipe import TrainingRecipe
from optmerge.demo.run import run_demo
from optmerge.errors import RunError, RunInterrupted
from tests.demo.test_assets import Copier


@pytest.fixture
def tiny(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> DemoPlan:
    """A demo of seconds: the same parts on the small archives."""
    small = replace(
        demo_plan(quick=True),
        recipe=TrainingRecipe(steps=2, batch=4, warm_up=1, probe_examples=8, max_tokens=12),
        select=4,
        report=8,
        grid=(0.3,),
        method_grid=(1.0,),
        searches=plans._searches(steps=2, batch=3, fit=6, entropy_steps=1, evaluations=3)[:2],
    )
    download = Copier(shelf)
    real = zoo.make_zoo

    def make(*arguments: object, **rest: object) -> zoo.Zoo:
        return real(*arguments, **(rest | {"download": download}))  # type: ignore[arg-type]

    assert zoo.make_zoo.__kwdefaults__["download"] is pip_download
    monkeypatch.setattr(run, "make_zoo", make)
    monkeypatch.setattr(run, "demo_plan", lambda *, quick: small)
    return small


def test_the_whole_way_with_an_interruption(tiny: DemoPlan, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    asked: list[None] = []

    def stop() -> str | None:
        if (output / "adam" / "trajectory.jsonl").exists():
            asked.append(None)
        return "interrupted" if len(asked) > 5 else None

    with pytest.raises(RunInterrupted):
        run_demo(output, terminal=False, stop=stop)
    assert not (output / "RESULT.md").exists()
    said: list[str] = []
    result = run_demo(output, say=said.append, terminal=False)
    assert "Time plan, about" in said[0]
    assert any(line.lstrip().startswith("|") for line in said)
    assert result.export["same"] is True
    assert result.export["texts"] == 16
    assert (output / "RESULT.md").read_text().startswith("# The demo")
    assert (output / "merged" / "sentiment" / "config.json").exists()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("trajectory.jsonl")}
    assert len(before) == len(tiny.searches)
    again = run_demo(output, terminal=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished search is not repeated"
    assert again.table == result.table


def test_another_demos_folder_is_refused(tiny: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> str | None:
        return "interrupted" if (tmp_path / "demo" / "adam" / "search.yaml").exists() else None

    with pytest.raises(RunInterrupted):
        run_demo(tmp_path / "demo", terminal=False, stop=stop)
    monkeypatch.setattr(run, "demo_plan", lambda *, quick: replace(tiny, report=7))
    with pytest.raises(RunError, match=r"other settings than this demo's \(splits\)"):
        run_demo(tmp_path / "demo", terminal=False)


def test_training_can_be_interrupted(tiny: DemoPlan, tmp_path: Path) -> None:
    with pytest.raises(RunInterrupted, match="enough"):
        run_demo(tmp_path / "demo", terminal=False, stop=lambda: "enough")
    assert not (tmp_path / "demo").exists()
