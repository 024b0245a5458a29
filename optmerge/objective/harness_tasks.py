"""lm-eval's tasks as a search may use them: loaded once, refused where they are public tests, divided into splits.

    tasks = HarnessTasks.load(config)
    tasks.loaded["my_task"]                        # lm_eval's Task
    tasks.positions["select"]["my_task"]           # places among its documents, ascending

Documents are divided by the hash of their content, the same documents once only, so that no document that a driver was
told about decides which iterate is best, or stands in a report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optmerge.calibration.splits import allocate, content_key
from optmerge.config.objectives import LmEvalConfig, is_task_file
from optmerge.errors import ConfigError, DataError, MissingExtraError, did_you_mean
from optmerge.records import SplitName

_LOCAL_BUILDERS = frozenset({"json", "csv", "text", "parquet", "arrow", "pandas", "xml"})


def require_harness() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingExtraError(
            "The term lm-eval needs lm-eval, which is not installed. Run: pip install 'optmerge[lm-eval]'"
        ) from None


def task_files(config: LmEvalConfig) -> list[Path]:
    """The task files that a term names.

    Raises:
        ConfigError: One is not there.
    """
    files = [Path(task) for task in config.tasks if is_task_file(task)]
    for path in files:
        if not path.is_file():
            near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.y*ml")])
            raise ConfigError(f"The term lm-eval names the task file {path}, and there is no such file.{near}")
    return files


@dataclass(frozen=True, eq=False)
class HarnessTasks:
    """Tasks and which of their documents are whose.

    Attributes:
        loaded: Name -> lm_eval task; groups are taken apart.
        positions: Split -> task -> places among the task's documents, ascending.
        hashes: Task -> hash of its settings and of the documents in use.
        higher_is_better: The metric's own flag.
    """

    loaded: Mapping[str, Any]
    positions: Mapping[SplitName, Mapping[str, list[int]]]
    hashes: Mapping[str, str]
    higher_is_better: bool

    @classmethod
    def load(cls, config: LmEvalConfig) -> HarnessTasks:
        """Load tasks; YAML files by absolute path.

        Raises:
            ConfigError: A task cannot be loaded, is a public test, or does not give the metric.
            DataError: A task has too few documents for three splits.
        """
        loaded = _load(config)
        if not config.allow_public_tests:
            _refuse_public_tests(config, loaded)
        positions: dict[SplitName, dict[str, list[int]]] = {"fit": {}, "select": {}, "report": {}}
        hashes = {}
        for name, task in loaded.items():
            _set_fewshot(task, config.num_fewshot)
            keys = [_document_key(document) for document in task.eval_docs]
            for split, chosen in _divide(name, keys, config).items():
                positions[split][name] = chosen
            settings = json.dumps(task.dump_config(), sort_keys=True, default=_name_of)
            hashes[name] = hashlib.sha256("\n".join([settings, *keys]).encode()).hexdigest()
        return cls(loaded, positions, hashes, _direction(config.metric, loaded))


def _load(config: LmEvalConfig) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    files = task_files(config)
    shipped = [task for task in config.tasks if not is_task_file(task)]
    if shipped and not config.allow_public_tests:
        raise _public(shipped)
    # Reading all that lm-eval ships takes seconds, so it is done only where a name asks for it.
    manager = TaskManager(
        include_path=sorted({str(path.parent) for path in files}) or None, include_defaults=bool(shipped)
    )
    loaded: dict[str, Any] = {}
    for spec in config.tasks:
        for name, task in _load_one(manager, spec).items():
            if name in loaded:
                raise ConfigError(f"The term lm-eval has the task {name!r} twice. Give each task once, under one name.")
            loaded[name] = task
    return loaded


def _load_one(manager: Any, spec: str) -> Mapping[str, Any]:
    if not is_task_file(spec) and spec not in manager.all_tasks:
        raise ConfigError(f"lm-eval ships no task {spec!r}.{did_you_mean(spec, manager.all_tasks)}")
    try:
        tasks: Mapping[str, Any] = manager.load([spec])["tasks"]
    except Exception as problem:  # whatever a task's YAML, its data set or its own code raises
        reason = " ".join(str(problem).split())[:300] or type(problem).__name__
        raise ConfigError(
            f"lm-eval cannot load the task {spec}: {reason}. Paths inside a task's YAML are relative to the folder "
            "that optmerge runs in; make them absolute."
        ) from problem
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise ConfigError(
                f"The lm-eval task {name} runs code that a model writes, or shows it images; the term lm-eval takes "
                "tasks of text alone."
            )
    return tasks


def _refuse_public_tests(config: LmEvalConfig, loaded: Mapping[str, Any]) -> None:
    """Refuse a local YAML that scores on the test split of a data set from the hub."""
    public = [
        name
        for name, task in loaded.items()
        if task.has_test_docs()
        and task.config.custom_dataset is None
        and task.config.dataset_path not in _LOCAL_BUILDERS
        and not Path(str(task.config.dataset_path)).exists()
    ]
    if public:
        raise _public(public)


def _public(names: list[str]) -> ConfigError:
    return ConfigError(
        f"The term lm-eval would optimise on {', '.join(names)}, the test set of a public benchmark. A merge that was "
        "chosen by such scores looks better than it is, there and on every leaderboard that uses them. Write a task "
        "YAML over data of your own (docs/lm-eval.md), or over a training or validation split; or set "
        "allow_public_tests: true in the term, and say with the results that it was so."
    )


def _set_fewshot(task: Any, wanted: int | None) -> None:
    """As ``lm_eval.simple_evaluate`` does: a task that says 0 keeps it, one that says nothing gets 0."""
    own = task.get_config("num_fewshot")
    if wanted is not None and own != 0:
        task.set_config(key="num_fewshot", value=wanted)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _document_key(document: Any) -> str:
    return content_key(json.dumps(document, sort_keys=True, default=str))


def _divide(name: str, keys: list[str], config: LmEvalConfig) -> dict[SplitName, list[int]]:
    """Places of a task's documents by split; of equal documents only the first is used."""
    first: dict[str, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    shares = config.shares
    sizes: dict[SplitName, int] = {
        "fit": int(shares.fit * len(first) + 1e-9),
        "select": int(shares.select * len(first) + 1e-9),
        "report": int(shares.report * len(first) + 1e-9),
    }
    if min(sizes.values()) < 1:
        raise DataError(
            f"The lm-eval task {name} has {len(first)} different documents, too few for the shares fit {shares.fit:g}, "
            f"select {shares.select:g} and report {shares.report:g}: each split needs at least one."
        )
    parts = allocate([[first[key]] for key in sorted(first)], sizes)
    return {split: sorted(places[: config.limit]) for split, places in parts.items()}


def _direction(metric: str, loaded: Mapping[str, Any]) -> bool:
    """The metric's own higher-is-better flag, on which all tasks must agree."""
    wanted = metric.partition(",")[0]
    flags: dict[str, bool] = {}
    for name, task in loaded.items():
        known = task.higher_is_better()
        if wanted not in known:
            raise ConfigError(
                f"The term lm-eval wants the metric {metric!r}, and the task {name} has {', '.join(sorted(known))}; "
                f"expected one of these, a comma, and the name of the filter (none where the task has no other)."
                f"{did_you_mean(wanted, known)}"
            )
        flags[name] = bool(known[wanted])
    if len(set(flags.values())) > 1:
        up = [name for name, flag in flags.items() if flag]
        raise ConfigError(
            f"The metric {metric!r} is better when it is higher in {', '.join(up)} and when it is lower in the other "
            "tasks, so its mean over tasks says nothing. Make it two searches, or take the tasks of one kind."
        )
    return next(iter(flags.values()))


def _name_of(value: object) -> str:
    """What stands for a setting that is no data, such as a function: a name without an address."""
    return str(getattr(value, "__qualname__", type(value).__qualname__))


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Without lm-eval's progress bars and its remarks below an error, which would come at every evaluation."""
    import functools
    import logging

    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface
    from tqdm import tqdm  # type: ignore[import-untyped]

    modules: list[Any] = [lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface]
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    for module in modules:
        module.tqdm = functools.partial(tqdm, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        for module in modules:
            module.tqdm = tqdm
