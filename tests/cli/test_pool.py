"""``optmerge pool`` around one small pool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from optmerge.config.load import load_config
from tests.cli.conftest import Run
from tests.zoo import make_zoo, zoo_settings


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny family and a search file with a comment."""
    root = tmp_path_factory.mktemp("pool")
    made = zoo_settings(make_zoo(root, "bert"), splits={"fit": 4, "select": 3, "report": 3})
    made["experts"] |= {"c": made["experts"]["a"]}
    (root / "search.yaml").write_text("# mine\n" + yaml.safe_dump(made, sort_keys=False))
    return root


def test_a_pool_is_ranked_and_a_search_with_the_best_is_written(run: Run, folder: Path, project: Path) -> None:
    file = project / "search.yaml"
    shown = run("pool", file, "--rounds", "2", "--keep", "2")
    assert shown.code == 0
    assert "promised fall" in shown.out
    assert f"Next:      optmerge search {project / 'search-pool.yaml'}" in shown.out
    written = project / "search-pool.yaml"
    assert written.read_text().startswith("# search.yaml with the experts that `optmerge pool --keep 2` kept.\n")
    pruned = load_config(written)
    assert list(pruned.experts) == ["a", "b"]  # the experts of tasks stay
    assert pruned.tasks.keys() == {"a", "b"}
    assert pruned.space == load_config(file).space
    assert {"pool.csv", "pool.json", "pool.png"} <= {path.name for path in (project / "run-pool").iterdir()}

    facts = json.loads(run("pool", file, "--rounds", "2", "--json").out)  # found finished
    assert facts["kept"] is facts["file"] is None
    assert sorted(expert["name"] for expert in facts["pool"]["experts"]) == ["a", "b", "c"]

    again = run("pool", file, "--rounds", "2", "--keep", "2")
    assert again.code == 2
    assert "search-pool.yaml exists; name another file with --to" in again.err
    other = run("pool", file, "--rounds", "3")
    assert other.code == 2
    assert "another number of rounds" in other.err
    one = run("pool", file, "--rounds", "2", "--keep", "1", "--drop-tasks", "--to", project / "one.yaml")
    assert one.code == 0
    assert list(load_config(project / "one.yaml").tasks) in (["a"], ["b"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--keep", "4"), "--keep is 4, and {file} has 3 experts; expected 1 to 3."),
        (("--keep", "1"), "the tasks of {file} name 2 experts, which are their teachers (a, b)"),
        (("--keep", "2", "--to", "elsewhere/x.yaml"), "--to is elsewhere/x.yaml, which is not in the folder of"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    run: Run, folder: Path, project: Path, arguments: tuple[str, ...], told: str
) -> None:
    file = project / "search.yaml"
    refused = run("pool", file, "--set", "output=none", *arguments)
    assert refused.code == 2
    assert told.format(file=file) in " ".join(refused.err.split()) or told.format(file=file) in refused.err
    assert not (project / "none-pool").exists()
