"""The verbs around one small search, in the order in which a user meets them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import optmerge
from optmerge.cli.init import render
from optmerge.errors import RunInterrupted
from tests.cli.conftest import Run
from tests.tiny import LABELS, WORDS, save_family


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny family, data, and a search file."""
    root = tmp_path_factory.mktemp("project")
    family = save_family("bert", root)
    for expert, classes in LABELS.items():
        rows = (
            {"text": " ".join(WORDS[(i + k) % 58] for k in range(3 + i % 4)), "label": i % classes} for i in range(58)
        )
        (root / f"{expert}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = render(
        "search.yaml",
        family.base.name,
        {name: folder.name for name, folder in family.experts.items()},
        {name: f"{name}.jsonl" for name in family.experts},
    )
    text = text.replace("{fit: 180, select: 60, report: 500}", "{fit: 8, select: 8, report: 8}")
    (root / "search.yaml").write_text(text.replace("evaluations: 60", "evaluations: 2"))
    return root


@pytest.fixture(scope="module")
def made(project: Path) -> Iterator[Path]:
    """A finished run of the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(project / "cache"))
        yield optmerge.search(project / "search.yaml", overrides=["output=first"]).folder


def test_ls_and_plan_know_the_dimension(run: Run, folder: Path, project: Path) -> None:
    spaces = json.loads(run("ls", "spaces", project / "search.yaml", "--json").out)["spaces"]
    dimension = {entry["name"]: entry["dimension"] for entry in spaces}
    assert dimension["model-wise"] == 1
    assert dimension["task-wise"] == 2
    choosing = project / "choosing.yaml"
    text = (project / "search.yaml").read_text().replace("driver: {name: adam, lr: 0.02}", "driver: cma")
    choosing.write_text(text + "methods: [task_arithmetic, {name: dare, drop: [0.3, 0.6]}]\n")
    spaces = json.loads(run("ls", "spaces", choosing, "--json").out)["spaces"]
    assert {entry["name"]: entry["dimension"] for entry in spaces}["task-wise"] == 2 + 2
    made = json.loads(run("plan", project / "search.yaml", "--json").out)
    assert made["dimension"] == dimension["tensor-wise"]
    assert made["evaluations"] == 2
    shown = run("plan", project / "search.yaml", "--set", "space=task-wise")
    assert "2 variables: 1 groups, 2 directions (one, two)" in shown.out
    few, all_of_them = run("plan", project / "search.yaml"), run("plan", project / "search.yaml", "--groups")
    assert "layer.1" not in few.out
    assert "bert.encoder.layer.1.output.dense.weight" in all_of_them.out


def test_search_prints_a_table(run: Run, folder: Path, project: Path, made: Path) -> None:
    changes = ["--set", "driver=cma", "--set", "space=task-wise", "--budget", "1", "--seed", "3", "--limit", "8"]
    shown = run("search", project / "search.yaml", "--output", "other", *changes)
    assert shown.code == 0, shown.err
    assert shown.out.isascii()
    assert "uniform:0.3" in shown.out
    assert "Recipe:  " in shown.out
    assert "driver.name" in run("compare", made, "other").out
    assert len(json.loads(run("compare", made, "other", "--json").out)["runs"]) == 2


def test_views_of_a_run(run: Run, folder: Path, made: Path) -> None:
    status = json.loads(run("status", made, "--json").out)
    assert (status["status"], status["evaluations"]) == ("finished", 2)
    assert "finished" in run("status", made).out
    (made / "report.md").unlink()
    assert "The search reaches" in run("report", made).out
    assert (made / "report.md").exists()
    assert json.loads(run("resume", made, "--quiet", "--json").out)["result"]["evaluations"] == 2


def test_explain_writes_a_page_that_the_report_links_to(run: Run, folder: Path, made: Path) -> None:
    records = (made / "trajectory.jsonl").read_bytes()
    said = run("explain", made, "--cheap")
    assert said.code == 0, said.err
    assert "relies on" in said.out
    assert "forward passes over select: 2, about" in said.err
    assert "explain/explain.md" in (made / "report.md").read_text()
    facts = json.loads(run("explain", made, "--passes", "8", "--json").out)
    assert len(facts["ablation"]["blocks"]) <= 8
    assert facts["summary"]
    assert (made / "trajectory.jsonl").read_bytes() == records


def test_a_taken_folder_is_refused(run: Run, project: Path, made: Path) -> None:
    taken = run("search", project / "search.yaml", "--output", made)
    assert taken.code == 2
    assert "optmerge resume" in taken.err


def test_export_and_merge(run: Run, folder: Path, made: Path) -> None:
    assert run("export", made, "--format", "coefficients", "--to", "c.csv").out == "Wrote c.csv\n"
    merged = json.loads(run("merge", made / "recipe.yaml", "--to", "m", "--dtype", "bfloat16", "--json").out)
    assert (merged["path"], merged["dtype"]) == ("m", "bfloat16")
    assert run("merge", made, "--to", "m").code == 2


def test_what_is_published_can_be_searched_again(run: Run, folder: Path, project: Path, made: Path) -> None:
    assert run("export", made, "--format", "checkpoint", "--to", "published").code == 0
    card = ModelCard.load(folder / "published" / "README.md")
    (row,) = (row for row in json.loads((made / "result.json").read_text())["rows"] if row["kind"] == "search")
    scores = {(each.task_name, each.metric_type): each.metric_value for each in card.data.eval_results or ()}
    assert scores == {(task, name): value for task, found in row["report"].items() for name, value in found.items()}
    assert "The search reaches" in card.text
    assert "mergekit cannot make this merge: each expert keeps a head of its own" in card.text
    shown = json.loads(run("push", "published", "me/published", "--dry-run", "--json").out)
    assert {"README.md", "optmerge.json", "recipe.yaml", "body/config.json", "two/config.json"} <= set(shown["files"])
    assert len(shown["notes"]) == 2  # no licence, and where the models are
    places = {"base": project / "base", **{f"experts.{name}": project / name for name in LABELS}}
    places |= {f"tasks.{name}.data": project / f"{name}.jsonl" for name in LABELS}
    changes = [part for key, place in places.items() for part in ("--set", f"{key}={place}")]
    again = run("search", "--reproduce", "published/optmerge.json", "--output", "again", *changes)
    assert again.code == 0, again.err
    assert "Reproduced: all" in again.out


def test_try_shows_the_winner_beside_the_experts(run: Run, folder: Path, made: Path) -> None:
    answers = json.loads(run("try", made, "w1 w2", "--json").out)["answers"]
    assert [(answer["head"], answer["model"]) for answer in answers] == [
        *(("one", "merged"), ("one", "one")),
        *(("two", "merged"), ("two", "two")),
    ]
    assert all(0 < answer["probability"] <= 1 for answer in answers)
    assert "> w1 w2" in run("try", made, "w1 w2", "--expert", "two").out
    refused = run("try", made, "w1", "--expert", "tow")
    assert refused.code == 2
    assert "Did you mean 'two'?" in refused.err


def test_ctrl_c_saves_and_prints_the_resume_command(
    run: Run, folder: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optmerge import api

    def interrupted(config: object, *, stop: Callable[[], str | None], **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        raise RunInterrupted(stop() or "")

    def stopped_at_once(config: object, *, stop: Callable[[], str | None], **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    for way, message in {
        interrupted: "The search was interrupted by Ctrl-C",
        stopped_at_once: "Stopped at once",
    }.items():
        monkeypatch.setattr(api, "search", way)
        result = run("search", project / "search.yaml", "--output", "my run")
        assert result.code == 130
        assert message in result.err
        assert f"optmerge resume '{folder}/my run'" in result.err
