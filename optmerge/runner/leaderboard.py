"""Every applicable method at its published settings, and beside them baselines, tuned methods and finished searches.

    board = measure_leaderboard(config, root=Path("."), folder=Path("runs/first-baseline"))
    [line.row.name for line in board.lines]          # the best on select first

All of it is judged by the evaluator of a search, on the same examples. A row is kept as soon as it is measured, so
that an interrupted leaderboard goes on where it was; a row that failed is measured again. One method's delta is held at
a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optmerge.atomic import atomic_write
from optmerge.config.drivers import OptunaConfig
from optmerge.config.load import dump_config
from optmerge.config.methods import TaskArithmeticConfig
from optmerge.config.objectives import TermConfig
from optmerge.config.schema import BaselinesConfig, SearchConfig
from optmerge.config.spaces import SpaceConfig
from optmerge.errors import DataError, RunError
from optmerge.records import Progress
from optmerge.runner.applicable import applicable, named_methods, obstacle
from optmerge.runner.board import Leaderboard, make_board
from optmerge.runner.board_rows import AVERAGE, BoardRows, Stop
from optmerge.runner.finished import finished_search
from optmerge.runner.folder import RunFolder
from optmerge.runner.making import Maker
from optmerge.runner.manifest import check_manifest, make_manifest
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references

FILE = "leaderboard.yaml"  # the resolved search file; a folder with search.yaml would be a run
SUFFIX = "-baseline"  # of the folder, behind the search's own
TRANSDUCTIVE = "The report split holds the inputs of fit and select (splits.transductive)."


def board_search(config: SearchConfig) -> SearchConfig:
    """A search's models, data and last objective on select, with one coefficient per direction.

    Terms of the coefficients are left out: they do not count on select, and here are none that they could judge.
    """
    config = config.at_stage(len(config.stages) - 1)
    terms: Sequence[TermConfig] = config.objective.select or [
        term for term in config.objective.terms if term.about != "coefficients"
    ]
    return config.model_copy(
        update={
            "objective": config.objective.model_copy(update={"terms": terms, "select": None}),
            "driver": OptunaConfig(),
            "method": TaskArithmeticConfig(),
            "directions": ["experts"],
            "methods": None,
            "space": SpaceConfig(granularity="model-wise"),
            "baselines": BaselinesConfig(grid=config.baselines.grid, methods=[]),
        }
    )


def measure_leaderboard(
    config: SearchConfig,
    *,
    root: Path,
    folder: Path,
    methods: Sequence[str] | None = None,
    tune: int | None = None,
    against: Sequence[Path] = (),
    progress: Progress = lambda stage, done, total: None,
    stop: Stop = lambda: None,
) -> Leaderboard:
    """Measure what the folder does not hold yet, and put all that was asked for in order.

    Args:
        config: The search whose models, data and objective count.
        root: What relative paths are relative to.
        folder: Where the leaderboard is kept: rows, scores, and what was tuned.
        methods: Only these; None is all that fit, and those that the search file names at settings of its own.
        tune: So many evaluations for each method's own settings and scale; None tunes nothing.
        against: Folders of finished searches of the same models and data.
        progress: Told of long work.
        stop: Asked before every row and every point that is tuned.

    Raises:
        UserError: As of a search; or the folder, or one of ``against``, holds something else.
        RunFailed: The base itself cannot be judged.
        RunInterrupted: ``stop`` gave a reason.
    """
    config = absolute_references(config, root)
    settings = board_search(config)
    named = {} if methods is not None else named_methods(config)
    known, left_out = applicable(settings, methods)  # a wrong name is told before anything is opened
    found = [finished_search(path) for path in against]
    claimed = _claim(folder, settings.model_copy(update={"output": str(folder)}))
    with claimed.locked():
        no_labels = None
        try:
            readers = list(dict.fromkeys(m.method_name() for m in [*known, *named.values()] if m.facts.labels))
            problem = open_problem(settings, progress=progress, label_readers=readers)
        except DataError as error:  # if it is for want of labels, the other methods do without
            problem = open_problem(settings, progress=progress)
            no_labels = str(error).rstrip(".")
            known, left_out = applicable(settings, methods, no_labels=no_labels)
        for name, entry in list(named.items()):
            reason = obstacle(settings, type(entry), no_labels)
            if reason is not None:
                left_out[name] = reason
                del named[name]
        manifest, stored = make_manifest(problem), claimed.read_json("manifest.json")
        if stored is None:
            claimed.write_json("manifest.json", manifest)
        else:
            check_manifest(stored, manifest, folder)
        with Maker(problem, folder / "delta", progress) as maker:
            measuring = BoardRows(claimed, problem, maker, progress, stop)
            rows = measuring.baselines(without_average=any(m.method_name() == AVERAGE for m in known))
            rows += measuring.searches(found, manifest)
            rows += measuring.methods(known, tune)
            rows += [measuring.method(name, entry) for name, entry in named.items()]
        return make_board(
            rows,
            folder=folder,
            metric=measuring.metric,
            seed=settings.seed,
            left_out=left_out,
            objective=[term.name for term in settings.objective.terms],
            notes=[TRANSDUCTIVE] if settings.splits.transductive else [],
        )


def _claim(path: Path, settings: SearchConfig) -> RunFolder:
    """The folder of an earlier leaderboard of the same, or a new one.

    Raises:
        RunError: It holds something else, or the disk refuses.
    """
    file = path / FILE
    if not file.exists():
        RunFolder.require_free(path)
        atomic_write(file, dump_config(settings))
    elif file.read_text(encoding="utf-8") != dump_config(settings):
        raise RunError(
            f"{path} holds another leaderboard: its models, data, objective, splits or other settings are not those of "
            "this search file. Delete it, or give this leaderboard a folder of its own with --output."
        )
    return RunFolder(path)
