"""How near two workers come to what the machine gives two processes: the demo's search, on processes and on Ray.

    make bench-workers
    python -m benchmarks.workers --small

CMA-ES on the demo's four experts, one thread each: in one process, by two local workers, and by two workers of a Ray
cluster of two nodes with one CPU each (processes of this machine; left out where Ray is not installed). The ceiling is
what bare processes reach that evaluate the same vectors and do nothing else: one alone, and two side by side. All of
them must find the same recipe. What comes before the second generation (models, teachers, baselines, workers that
start) is not measured. The experts are made when they are missing (131 MB are downloaded once).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.synchronize import Barrier
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.demo_searches import Size, demo_zoo, run, settings
from benchmarks.harness import parser, show, workspace
from optmerge.models.cache import cache_dir
from optmerge.records import Candidate, Record, Trajectory
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.executor import Job
from optmerge.runner.folder import RunFolder
from optmerge.runner.geometry import make_geometry
from optmerge.runner.problem import open_problem
from optmerge.runner.teachers import Teachers

WORKERS = 2


def judged(folder: Path) -> tuple[float, list[Record]]:
    """Records of a search from its second generation on, and the seconds that they took."""
    records = [record for record in Trajectory.read(folder).records if record.phase in ("search", "select")]
    first = next(at for at, record in enumerate(records) if record.phase == "search" and record.generation)
    return records[-1].elapsed - records[first - 1].elapsed, records[first:]


def rate(folder: Path) -> float:
    """Evaluations per second of a search."""
    seconds, records = judged(folder)
    return len(records) / seconds


def bare(folder: Path, cache: str, turn: Any, together: Barrier, spans: Any) -> None:
    """The main of a bare process: evaluate whatever of the search's vectors nobody has taken yet."""
    import os

    os.environ["OPTMERGE_CACHE"] = cache
    torch.set_num_threads(1)
    problem = open_problem(RunFolder.open(folder).config())
    evaluator = Evaluator(problem, Teachers.make(problem, lambda *_: None))
    for record in Trajectory.read(folder).records:
        if record.name == "base" and record.split in ("fit", "select"):
            problem.objective.on(record.split).set_normalisers(record.split, record.metrics)
    _, records = judged(folder)
    evaluator.geometry = make_geometry(problem, problem.space.start)
    jobs = [
        Job("select" if record.split == "select" else "fit", Candidate(record.vector))
        for record in records
        if record.vector is not None
    ]
    jobs[0].run(evaluator)  # to read what is mapped
    together.wait()
    begun = perf_counter()
    while True:
        with turn.get_lock():
            mine, turn.value = turn.value, turn.value + 1
        if mine >= len(jobs):
            break
        found = jobs[mine].run(evaluator)
        assert not found.failed, found.error
    spans.put((begun, perf_counter(), len(jobs)))


def ceiling(folder: Path, processes: int) -> float:
    """Evaluations per second of so many bare processes together."""
    context = multiprocessing.get_context("spawn")
    turn, together, spans = context.Value("l", 0), context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=bare, args=(folder, str(cache_dir()), turn, together, spans)) for _ in range(processes)
    ]
    for process in started:
        process.start()
    found: list[tuple[float, float, int]] = [spans.get() for _ in started]
    for process in started:
        process.join()
    return found[0][2] / (max(end for _, end, _ in found) - min(begun for begun, _, _ in found))


@contextmanager
def ray_cluster(nodes: int = WORKERS) -> Iterator[Any]:
    """A head without room for workers and nodes with room for one each, all of this machine; a ``ray`` Cluster."""
    ray = import_module("ray")  # an extra, which type checkers need not know
    made = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def main() -> None:
    """Search on all, measure the ceiling, print the table."""
    arguments = parser(__doc__, default="a temporary one, removed at the end; the experts are kept in the cache")
    arguments.add_argument("--evaluations", type=int, default=96, help="candidates of each search")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    zoo, plan = demo_zoo(small=options.small)
    size = Size(steps=16 if options.small else options.evaluations, fit=60, batch=60, select=20, report=20)
    with workspace(options) as work:
        changes: dict[str, Any] = {
            "driver": {"name": "cma", "population": 4 if options.small else 12},
            "budget": {"evaluations": size.steps, "front": 0},
        }

        def searched(name: str, executor: Mapping[str, Any]) -> Path:
            folder = work / name / "run"  # its name is in the recipe
            run(settings(zoo, plan, size, folder, executor=executor, **changes), terminal=False)
            return folder

        one = searched("one", {})
        folders = {"a search in one process": one, "2 local workers": searched("local", {"workers": WORKERS})}
        if find_spec("ray") is not None:
            with ray_cluster() as cluster:
                folders["2 workers on Ray, two nodes"] = searched(
                    "ray", {"name": "ray", "workers": WORKERS, "address": cluster.address}
                )
        recipe = (one / "recipe.yaml").read_text()
        alone, both = ceiling(one, 1), ceiling(one, WORKERS)
        rows = [
            ["a bare process", f"{alone:.2f}", "", "1.00", ""],
            ["2 bare processes: the ceiling", f"{both:.2f}", "100 %", f"{both / alone:.2f}", ""],
        ]
        for name, folder in folders.items():
            reached = rate(folder)
            share = "" if folder == one else f"{100 * reached / both:.0f} %"
            same = "the same" if (folder / "recipe.yaml").read_text() == recipe else "another one"
            rows.append([name, f"{reached:.2f}", share, f"{reached / alone:.2f}", same])
        head = ["", "evaluations/s", "of the ceiling", "of one bare process", "best recipe"]
        note = (
            f"{size.steps} candidates in generations of {changes['driver']['population']}, "
            f"each on {size.fit} texts a task; each generation's best on {size.select} more."
        )
        show("Two workers", head, rows, [note], threads=1)


if __name__ == "__main__":
    main()
