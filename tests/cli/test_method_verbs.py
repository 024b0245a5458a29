"""What the verbs that read no weights know of methods and directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from optmerge.config.methods import METHOD_CONFIGS
from tests.cli.conftest import Run


def write(folder: Path, **changes: Any) -> Path:
    names = changes.pop("experts", ["law", "code"])
    (folder / "texts.jsonl").touch()
    content = {
        "base": "base",
        "experts": {name: name for name in names},
        "tasks": {name: {"expert": name, "data": "texts.jsonl"} for name in names},
        "objective": "expert-kl",
        **changes,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_ls_shows_every_method_with_what_it_declares(run: Run) -> None:
    listed = json.loads(run("ls", "methods", "--json").out)["methods"]
    assert [entry["name"] for entry in listed] == list(METHOD_CONFIGS)
    for entry in listed:
        config = METHOD_CONFIGS[entry["name"]]
        assert list(entry["settings"]) == [name for name in config.model_fields if name != "name"]
        assert set(entry["searched"]) == set(config.tuned())
        assert entry["needs"][0] == "weights"
        assert (entry["searchable"] == "parts") == config.facts.linear
        assert (entry["scale"], entry["mergekit"]) == (config.facts.scale, config.facts.mergekit)
        assert all(entry[told] for told in ("what", "cost", "paper"))


def test_ls_methods_for_people(run: Run) -> None:
    lines = run("ls", "methods").out.splitlines()
    assert len(lines) == 1 + len(METHOD_CONFIGS)
    (ties,) = (line for line in lines if line.startswith("ties "))
    assert "density*=0.2" in ties
    assert "whole" in ties
    (regmean,) = (line for line in lines if line.startswith("regmean "))
    assert "weights, inputs" in regmean


def test_validate_names_the_directions(run: Run, folder: Path) -> None:
    path = write(folder, method="dare", directions=["experts", "ties", {"name": "ties", "density": 0.5}])
    assert "space over dare:law, dare:code, ties, ties[density=0.5]," in run("validate", path).out


def test_validate_refuses_names_that_clash(run: Run, folder: Path) -> None:
    result = run("validate", write(folder, experts=["law", "ties"], baselines={"methods": ["ties"]}))
    assert result.code == 2
    assert "an expert is called like the method ties" in result.err


def test_validate_refuses_a_method_without_parts(run: Run, folder: Path) -> None:
    result = run("validate", write(folder, method="slerp"))
    assert result.code == 2
    assert "method: slerp is not a sum of one part per expert" in result.err


OWN = """
from optmerge.config.methods import Searched
from optmerge.merging.methods.own import PartsMethod, WholeMethod

class Half(PartsMethod):
    '''Half of every task vector.'''
    tuned = {"share": Searched(0.0, 1.0)}

    def __init__(self, share=0.5):
        self.share = share

    def parts(self, vectors, kind):
        return [self.share * vector for vector in vectors]

class Mean(WholeMethod):
    def merged(self, vectors, kind):
        return sum(vectors) / len(vectors)
"""


def test_ls_shows_methods_of_ones_own(run: Run, folder: Path) -> None:
    mine = folder / "mine.py"
    mine.write_text(OWN)
    rows = json.loads(run("ls", "methods", "--own", f"{mine}:Half", "--own", f"{mine}:Mean", "--json").out)["methods"]
    assert [row["name"] for row in rows] == [*METHOD_CONFIGS, "Half", "Mean"]
    half, mean = rows[-2:]
    assert (half["what"], half["settings"]) == ("Half of every task vector.", {"share": 0.5})
    assert half["searched"]["share"]["high"] == 1.0
    assert (half["searchable"], mean["searchable"]) == ("parts", "whole")
    custom = {"name": "custom", "path": "mine.py:Half"}
    path = write(folder, directions=["experts", {"name": "one-of", "methods": ["ties", custom]}], driver="cma")
    shown = run("ls", "methods", path).out.splitlines()
    assert shown[-1].startswith("Half ")
    assert "share*=0.5" in shown[-1]


def test_validate_makes_methods_of_ones_own(run: Run, folder: Path) -> None:
    (folder / "mine.py").write_text(OWN)
    custom = {"name": "custom", "path": "mine.py:Half", "settings": {"share": 0.2}}
    path = write(folder, method=custom, directions=["experts", {**custom, "settings": {}}])
    assert "space over Half:law, Half:code, Half," in run("validate", path).out
    for wrong, words in [
        ({**custom, "path": "mine.py:Hlf"}, "Did you mean 'Half'?"),
        ({**custom, "path": "mine.py"}, "expected FILE.py:CLASS, such as my_methods.py:Shrunk"),
        ({**custom, "settings": {"shre": 1}}, "unexpected keyword argument"),
        ({"name": "custom", "path": "mine.py:Mean"}, "Mean is a WholeMethod, so it has no parts to scale"),
    ]:
        result = run("validate", write(folder, method=wrong))
        assert result.code == 2
        assert words in " ".join(result.err.split())


def test_validate_names_drivers_that_can_choose(run: Run, folder: Path) -> None:
    chosen = ["experts", {"name": "one-of", "methods": ["ties", "iso-c"]}]
    result = run("validate", write(folder, directions=chosen, driver="adam"))
    assert result.code == 2
    assert "a choice among methods has none. Use cma, optuna or natural-niches" in " ".join(result.err.split())
    assert "space over law, code, one-of," in run("validate", write(folder, directions=chosen, driver="cma")).out
