"""A search whose workers have none of its files: they fetch them, and find what one process finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optmerge.config.load import build_config
from optmerge.runner import file_server, search_files
from optmerge.runner.node_files import FileEntry
from optmerge.runner.search import search
from tests.merging.methods.test_own import HEAD, LARGEST
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
CMA = {"name": "cma", "population": 4}
STAGES = [
    {"driver": CMA, "evaluations": 4, "objective": {"terms": [{"name": "entropy"}]}},
    {"driver": CMA, "objective": {"terms": [{"name": "expert-kl"}]}},
]


def test_workers_without_any_file_find_what_one_process_finds(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages, the second with teacher outputs of its own; deltas of whole methods, one of them a user's."""
    monkeypatch.setattr(  # the originals are out of the workers' sight
        search_files, "FileEntry", lambda name, sha256, size, origin: FileEntry(name, sha256, size, f"/hidden{origin}")
    )
    sent: list[str] = []
    stream = file_server._Handler._stream

    def noted(self: Any, file: Any, begin: int, size: int, name: str) -> None:
        sent.append(name)
        stream(self, file, begin, size, name)

    monkeypatch.setattr(file_server._Handler, "_stream", noted)
    (tmp_path / "wholes.py").write_text(HEAD + LARGEST.format(sees="entries"))
    changes: dict[str, Any] = {
        "directions": ["experts", "iso-c", {"name": "custom", "path": "wholes.py:Largest"}],
        "schedule": STAGES,
        "budget": {"evaluations": 8},
    }

    def run(name: str, **executor: Any) -> Path:
        made = settings(**changes, output=f"{name}/run", executor=executor)
        del made["driver"]
        return search(build_config(made, root=tmp_path), root=tmp_path).folder

    one = run("one")
    node = tmp_path / "node"
    two = run("two", workers=2, files="fetch", node_cache=str(node))
    assert facts(two) == facts(one)
    assert (two / "recipe.yaml").read_text() == (one / "recipe.yaml").read_text()
    assert {"base/model.safetensors", "one/model.safetensors", "two/model.safetensors"} <= set(sent)
    assert max(Counter(sent).values()) == 1, "a file was fetched more than once"
    assert not (node / "directions").exists(), "a worker made a delta that the search had made"
    assert not list((node / "fetched" / "files").glob("*.part"))
