"""What a search says of a Ray cluster, and what is left of the process that joins one; with a Ray that is none."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from optmerge.errors import RunError
from optmerge.runner import ray_workers
from optmerge.runner.ray_workers import RayWorkers
from optmerge.runner.worker import WorkerSpec

Ray = Callable[..., SimpleNamespace]


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    """Stands for Ray, with a cluster of some machines; joining it takes SIGTERM over, as Ray's does."""
    own = signal.getsignal(signal.SIGTERM)

    def make(*machines: dict[str, float]) -> SimpleNamespace:
        joined: list[bool] = []

        def init(**options: Any) -> None:
            joined.append(True)
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))

        made = SimpleNamespace(
            is_initialized=lambda: bool(joined),
            init=init,
            shutdown=joined.clear,
            nodes=lambda: [{"Alive": True, "Resources": machine} for machine in machines],
            remote=lambda actor: SimpleNamespace(options=lambda **options: options),
        )
        monkeypatch.setitem(sys.modules, "ray", made)
        return made

    yield make
    signal.signal(signal.SIGTERM, own)


def join(**changes: Any) -> RayWorkers:
    spec = WorkerSpec(cast(Any, None), ("cpu",), {}, 1, "accumulate", (), {}, (), None)
    settings: dict[str, Any] = {"workers": 2, "address": "auto", "gpus": 0.0}
    return RayWorkers(spec, **(settings | changes))


def test_sigterm_stays_what_the_process_has_made_of_it(ray: Ray) -> None:
    def handle(number: int, frame: Any) -> None: ...

    ray({"CPU": 2.0})
    signal.signal(signal.SIGTERM, handle)
    with closing(join()):
        assert signal.getsignal(signal.SIGTERM) is handle


def test_a_cluster_without_room_for_a_worker_on_any_machine_is_refused(ray: Ray) -> None:
    made = ray({"CPU": 4.0, "GPU": 8.0}, {"CPU": 4.0})
    with pytest.raises(RunError, match=r"A worker takes 6 CPU and 1 GPU, and no machine of the Ray cluster has"):
        join(cpus=6, gpus=1.0)
    assert not made.is_initialized(), "left joined"
    with pytest.raises(RunError, match=r"A worker takes 1 CPU and 9 GPU"):
        join(gpus=9.0)


def test_workers_for_which_there_is_no_room_yet_are_told(ray: Ray, caplog: pytest.LogCaptureFixture) -> None:
    """A resumed search may have lost a machine, and a cluster may grow."""
    ray({"CPU": 4.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 8.0}, {"CPU": 64.0})
    join(workers=3, gpus=0.5).close()
    assert not caplog.messages
    join(workers=4, gpus=0.5).close()
    assert caplog.messages == ["the Ray cluster has room for 3 of 4 workers; the others begin when it has more"]


def test_a_machine_with_other_versions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = WorkerSpec(cast(Any, None), ("cpu",), {}, 1, "accumulate", (), {}, (), None)
    here = ray_workers._versions()
    monkeypatch.setattr(ray_workers, "Worker", lambda spec: "opened")
    logger = logging.getLogger("optmerge")  # of an actor it is that of a process of its own
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "setLevel", lambda level: None)
    assert ray_workers.RayWorker(spec, here).open()[0] is None
    mistake, _ = ray_workers.RayWorker(spec, here | {"torch": "0.1"}).open()
    assert isinstance(mistake, RunError)
    assert f"has torch {here['torch']}, and the search runs with torch 0.1. Install the same" in str(mistake)
