"""Searches whose evaluations are made by processes of this machine: the same as in this one, whatever dies."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optmerge.config.schema import SearchConfig
from optmerge.errors import MissingExtraError, RunError
from optmerge.records import Trajectory
from optmerge.runner.local_workers import LocalWorkers
from optmerge.runner.search import search
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
CMA = {"driver": {"name": "cma", "population": 4}, "budget": {"evaluations": 12}}


def run(settings: dict[str, Any], root: Path) -> Path:
    root.mkdir()
    return search(SearchConfig.model_validate(settings), root=root).folder


def test_two_workers_find_what_one_process_finds(settings: Settings, tmp_path: Path) -> None:
    one = run(settings(**CMA), tmp_path / "one")
    two = run(settings(**CMA, executor={"workers": 2}), tmp_path / "two")
    assert facts(two) == facts(one)
    assert (two / "recipe.yaml").read_text() == (one / "recipe.yaml").read_text()


def test_a_gradient_is_made_in_shares(settings: Settings, tmp_path: Path) -> None:
    one = run(settings(budget={"evaluations": 3}), tmp_path / "one")
    two = run(settings(budget={"evaluations": 3}, executor={"workers": 2}), tmp_path / "two")
    expected, found = (Trajectory.read(folder).records for folder in (one, two))
    assert [(record.phase, record.name) for record in found] == [(record.phase, record.name) for record in expected]
    first = next(number for number, record in enumerate(expected) if record.phase == "search")
    gradients = found[first].gradient, expected[first].gradient
    assert gradients[1] is not None
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=0, atol=1e-6 * float(np.abs(gradients[1]).max()))
    assert [record.value for record in found] == pytest.approx([record.value for record in expected], abs=1e-4)


def test_workers_that_there_will_not_be_are_missed_before_anything_is_written(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'optmerge\[ray\]'"):
        run(settings(**CMA, executor={"name": "ray", "workers": 2}), tmp_path / "none")
    nobody = SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", nobody)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    executor = {"name": "ray", "address": f"127.0.0.1:{port}"}
    with pytest.raises(RunError, match=rf"no Ray cluster at '127.0.0.1:{port}' \(ConnectionRefusedError"):
        run(settings(**CMA, executor=executor), tmp_path / "nobody")
    assert not list(tmp_path.glob("*/*"))


def test_files_that_cannot_be_served_are_found_before_anything_is_written(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalWorkers, "host", "192.0.2.1")  # none of this machine's
    with pytest.raises(RunError, match=r"cannot serve its files at 192\.0\.2\.1"):
        run(settings(**CMA, executor={"workers": 2, "files": "fetch"}), tmp_path / "unserved")
    assert not list(tmp_path.glob("unserved/*"))
