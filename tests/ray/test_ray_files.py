"""Actors whose machine has none of a search's files; run by `make test-ray`."""

from __future__ import annotations

from pathlib import Path

import pytest

from optmerge.config.schema import SearchConfig
from optmerge.runner import search_files
from optmerge.runner.node_files import FileEntry
from optmerge.runner.search import search
from tests.zoo import facts, make_zoo, zoo_settings

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

CMA = {"driver": {"name": "cma", "population": 4}, "budget": {"evaluations": 8}, "directions": ["experts", "iso-c"]}


def test_actors_fetch_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(  # the originals are out of the workers' sight
        search_files, "FileEntry", lambda name, sha256, size, origin: FileEntry(name, sha256, size, f"/hidden{origin}")
    )
    zoo = make_zoo(tmp_path / "zoo", "bert")
    node = tmp_path / "node"
    executor = {"name": "ray", "address": "local", "workers": 2, "files": "fetch", "node_cache": str(node)}
    found = [
        search(SearchConfig.model_validate(zoo_settings(zoo, **CMA, output=name, executor=settings)), root=tmp_path)
        for name, settings in (("one", {}), ("two", executor))
    ]
    assert facts(found[1].folder) == facts(found[0].folder)
    assert list((node / "fetched" / "files").iterdir())
    assert not (node / "directions").exists(), "a worker made a delta that the search had made"
