"""Searches on a real Ray cluster of two nodes with one CPU each; run by `make test-ray`."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.workers import ray_cluster
from optmerge.config.schema import SearchConfig
from optmerge.records import Trajectory
from optmerge.runner.search import search
from tests.runner.processes import finish_search, start_search, wait_for_records
from tests.zoo import facts, make_zoo, zoo_settings

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

NODES, KILLS = 2, 5
CMA = {"driver": {"name": "cma", "population": 4}, "budget": {"evaluations": 400}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for workers, and two nodes with room for one each."""
    with ray_cluster(NODES) as made:
        yield made


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def undisturbed(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search in one process."""
    root = tmp_path_factory.mktemp("one")
    return search(SearchConfig.model_validate(zoo_settings(zoo, **CMA)), root=root).folder


def settings_on(zoo: Path, cluster: Any, **changes: Any) -> dict[str, Any]:
    executor = {"name": "ray", "workers": 2, "address": cluster.address, "retries": 3} | changes
    return zoo_settings(zoo, **CMA, executor=executor)


def disturbed(zoo: Path, cluster: Any, root: Path, disturb: Callable[[], None]) -> Path:
    """The search on the cluster, which is disturbed when it has made so many records, five times."""
    folder = root / "run"
    process = start_search(settings_on(zoo, cluster), root)
    for moment in random_moments(12, 300):
        wait_for_records(folder, moment, process)
        assert process.is_alive(), "the search ended before it could be disturbed"
        disturb()
    process.join()
    assert process.exitcode == 0
    return folder


def random_moments(low: int, high: int) -> list[int]:
    """Numbers of records, another choice at every call."""
    return sorted(np.random.default_rng(int.from_bytes(os.urandom(4), "little")).integers(low, high, KILLS).tolist())


def assert_same(folder: Path, undisturbed: Path) -> None:
    assert facts(folder) == facts(undisturbed)
    assert (folder / "recipe.yaml").read_text() == (undisturbed / "recipe.yaml").read_text()


def test_two_workers_find_what_one_process_finds(zoo: Path, cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    assert_same(search(SearchConfig.model_validate(settings_on(zoo, cluster)), root=tmp_path).folder, undisturbed)


def test_killed_workers_are_replaced(zoo: Path, cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    def kill() -> None:
        wait_for_worker(cluster)[0].kill()

    assert_same(disturbed(zoo, cluster, tmp_path, kill), undisturbed)


def test_a_worker_that_hangs_is_replaced(zoo: Path, cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    settings = settings_on(zoo, cluster, timeout=15.0)
    process = start_search(settings, tmp_path)
    wait_for_records(tmp_path / "run", 40, process)
    hung, _ = wait_for_worker(cluster)
    hung.suspend()
    process.join()
    assert process.exitcode == 0
    assert_same(tmp_path / "run", undisturbed)
    assert not hung.is_running()


def test_lost_nodes_are_left(zoo: Path, cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    for _ in range(KILLS):
        cluster.add_node(num_cpus=1)  # where lost workers find room at once
    cluster.wait_for_nodes()

    def lose() -> None:
        cluster.remove_node(wait_for_worker(cluster)[1], allow_graceful=False)  # SIGKILL of its raylet

    assert_same(disturbed(zoo, cluster, tmp_path, lose), undisturbed)
    assert len(cluster.worker_nodes) == NODES


def wait_for_worker(cluster: Any) -> tuple[psutil.Process, Any]:
    """The process of any actor, and its node."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    while True:
        found = list(psutil.process_iter(["cmdline", "ppid"]))
        actors = [process for process in found if (process.info["cmdline"] or [""])[0].startswith("ray::RayWorker")]
        workers = [(process, raylets[process.info["ppid"]]) for process in actors if process.info["ppid"] in raylets]
        if workers:
            return random.SystemRandom().choice(workers)
        time.sleep(0.01)


def test_a_killed_driver_goes_on(zoo: Path, cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    settings = settings_on(zoo, cluster)
    killed = 0
    for after in random_moments(1, len(Trajectory.read(undisturbed).records) - 5):
        process = start_search(settings, tmp_path)
        wait_for_records(tmp_path / "run", after, process)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed == KILLS
    finish_search(settings, tmp_path)
    assert_same(tmp_path / "run", undisturbed)
