"""A search again, from its manifest: what differs here, graded before it runs, and what came of it.

    stored = read_manifest(Path("runs/first/manifest.json"))
    config = settings_of(stored, Path("runs/first/manifest.json"))
    for mismatch in mismatches(stored, now): ...
    told = compare(stored, again, beside=Path("runs/first"))

*Fatal* is what would be another search: other models, data, examples, variables, settings or files of the user's own.
*Likely* to matter is what the last bits of numbers depend on: the machine, threads, torch, the drivers' libraries.
*Harmless* is the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from optmerge.config.load import build_config
from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError, RunError
from optmerge.records import Record, Trajectory, vector_sha256
from optmerge.runner.manifest import changed_content

Grade = Literal["fatal", "likely", "harmless"]
GRADES: tuple[Grade, ...] = ("fatal", "likely", "harmless")

_SAME_SEARCH = ("seed", "splits", "report_examples", "dimension", "variables", "kind", "heads")
_SAME_NUMBERS = ("dtype", "gradient", "kept")
_NUMERICAL = ("optmerge", "torch", "transformers", "numpy", "cma", "optuna")  # whose versions numbers depend on


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something that is not as it was.

    Attributes:
        grade: How much it matters.
        what: Its name.
        was: In the manifest; None where it had none.
        now: Here.
    """

    grade: Grade
    what: str
    was: object
    now: object


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished search came to.

    Attributes:
        records: Lines of its trajectory.
        trajectory: A hash of all that was asked and found, times apart.
        select: The best value on select.
        report: The mean metric on report.
    """

    records: int
    trajectory: str
    select: float | None
    report: float | None


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Two outcomes of one manifest.

    Attributes:
        identical: Whether both trajectories are the same, bit for bit.
        first: The first record that differs, where the other trajectory is at hand.
        was: The manifest's outcome.
        now: This one.
    """

    identical: bool
    first: int | None
    was: Outcome
    now: Outcome

    @property
    def sentence(self) -> str:
        """For people."""
        if self.identical:
            return f"Reproduced: all {self.now.records} records of the trajectory are identical."
        where = "" if self.first is None else f" from record {self.first} on"
        return (
            f"Not identical{where}: the best select value was {_value(self.was.select)} and is "
            f"{_value(self.now.select)}, the mean on report was {_value(self.was.report)} and is "
            f"{_value(self.now.report)}."
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, given its path or its run's folder.

    Raises:
        RunError: There is none, or it is damaged.
    """
    file = path / "manifest.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"There is no manifest {file}. Every run's folder has one: RUN/manifest.json.") from None
    except (ValueError, OSError) as problem:
        raise RunError(f"{file} cannot be read as a manifest ({problem}). Restore it from a copy.") from None
    if not isinstance(content, dict) or not {"models", "data", "versions", "hardware"} <= set(content):
        raise RunError(f"{file} is no manifest of a run; expected the manifest.json that a search wrote.")
    return content


def settings_of(manifest: Mapping[str, Any], path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """The search that a manifest describes.

    Args:
        manifest: From `read_manifest`.
        path: Where it is, for messages.
        overrides: Where models, data and the run's folder are here, as ``dotted.key=value``.

    Raises:
        ConfigError: It says nothing of its search, or an override does not fit.
    """
    if "search" not in manifest:
        raise ConfigError(
            f"{path} is of an older optmerge and does not hold its search. Use the search.yaml beside it: optmerge "
            "search search.yaml"
        )
    return build_config(manifest["search"], root=path.parent, source=str(path), overrides=overrides)


def mismatches(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[Mismatch]:
    """What is not as it was, the worst first.

    Args:
        stored: The manifest to reproduce.
        now: What `make_manifest` says here.
    """
    found = [Mismatch("fatal", problem, None, None) for problem in changed_content(stored, now)]
    found += _differing("fatal", {key: stored.get(key) for key in _SAME_SEARCH}, now)
    found += _differing("fatal", _steering(stored), _steering(now))
    found += _differing("likely", {key: stored.get(key) for key in _SAME_NUMBERS}, now)
    found += _differing("likely", stored["hardware"], now["hardware"])
    for name, version in stored["versions"].items():
        if now["versions"].get(name) != version:
            grade: Grade = "likely" if name in _NUMERICAL else "harmless"
            found.append(Mismatch(grade, name, version, now["versions"].get(name)))
    found += _differing("harmless", {"git": stored.get("git")}, now)
    return sorted(found, key=lambda mismatch: GRADES.index(mismatch.grade))


def require_same_search(found: Sequence[Mismatch]) -> None:
    """Refuse a reproduction that would be another search.

    Raises:
        RunError: A mismatch is fatal; all of them are named.
    """
    fatal = [mismatch for mismatch in found if mismatch.grade == "fatal"]
    if fatal:
        told = "; ".join(
            each.what if each.was is None and each.now is None else f"{each.what} was {each.was} and is {each.now}"
            for each in fatal
        )
        raise RunError(
            f"This would be another search: {told}. Restore what changed; models and data may be elsewhere, with the "
            "same content: --set base=FOLDER, --set experts.NAME=FOLDER, --set tasks.NAME.data=FILE."
        )


def outcome_of(folder: Path, result: Mapping[str, Any]) -> Outcome:
    """What a finished run came to."""
    records = Trajectory.read(folder).records
    digest = hashlib.sha256()
    for record in records:
        digest.update(_identity(record).encode())
    winner: Mapping[str, Any] = next((row for row in result["rows"] if row.get("kind") == "search"), {})
    return Outcome(len(records), digest.hexdigest(), result["best"]["select"], winner.get("mean"))


def compare(stored: Mapping[str, Any], again: Path, result: Mapping[str, Any], *, beside: Path) -> Reproduction | None:
    """Hold a finished run against the manifest that it reproduced.

    Args:
        stored: The manifest.
        again: The new run's folder.
        result: Its result.
        beside: Where the manifest lies; the first difference is told where its trajectory lies there too.

    Returns:
        None if the manifest is of a search that did not finish.
    """
    if "outcome" not in stored:
        return None
    was, now = Outcome(**stored["outcome"]), outcome_of(again, result)
    identical = was.trajectory == now.trajectory
    first = None
    if not identical and (beside / "trajectory.jsonl").is_file():
        pairs = zip_longest(Trajectory.read(beside).records, Trajectory.read(again).records)
        first = next((number for number, pair in enumerate(pairs) if not _alike(*pair)), None)
    return Reproduction(identical, first, was, now)


def _differing(grade: Grade, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Mismatch]:
    for key, value in was.items():
        if now.get(key) != value:
            short = (value, now.get(key)) if len(str(value)) < 100 else ("another", "this")
            yield Mismatch(grade, key, *short)


def _steering(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a search's numbers follow from; where things lie and who watches are not among them."""
    search: Mapping[str, Any] = manifest.get("search") or {}
    apart = ("base", "experts", "output", "tracking", "device", "dtype", "memory", "text_model", "tasks", "seed")
    tasks = {
        name: {key: value for key, value in task.items() if key != "data"}
        for name, task in (search.get("tasks") or {}).items()
    }
    return {key: value for key, value in search.items() if key not in apart} | {"tasks": tasks}


def _alike(left: Record | None, right: Record | None) -> bool:
    return left is not None and right is not None and _identity(left) == _identity(right)


def _identity(record: Record) -> str:
    """All of a record that does not depend on the clock."""
    facts = [
        [record.phase, record.driver, record.split, record.stage, record.generation, record.name],
        [record.value, dict(record.per_task), {task: dict(values) for task, values in record.metrics.items()}],
        [None if record.vector is None else vector_sha256(record.vector), record.vector_sha256],
        [record.examples, record.share, record.pruned, record.counts, record.error is None],
    ]
    return json.dumps(facts, sort_keys=True)


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
