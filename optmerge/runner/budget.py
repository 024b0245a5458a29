"""When a search stops, and why. Limits are exact; the clock is looked at between evaluations only.

progress = Progress()
spend(progress, candidate, whole=360)                    # an evaluation more, or a rung's part of one
note_select(progress, record, 0.31, attempt=True)        # a select score more
exhausted(budget, progress)                              # the reason to stop, or None
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optmerge.config.schema import BudgetConfig
from optmerge.records import Candidate


@dataclass
class Progress:
    """Where a search stands.

    Attributes:
        evaluations: Fit evaluations so far, as `spend` counts them.
        generation: How many generations were closed, a trial's rungs before its last not among them.
        best: Lowest select value so far.
        best_record: The record that has it.
        stale: Select scores since the best one.
        failed_generations: Generations without a finite value since the last one that had any.
        seconds: Seconds of search, summed over resumes.
        restored: Whether an alarm has made the driver go back to the best iterate.
        ended: What an alarm said that ended the search.
        stage_evaluations: Fit evaluations of this stage of a schedule.
        stage_stale: Select scores of this stage since the best one.
        part: Examples that rungs looked at and that do not make a whole evaluation yet.
        unscored: The record of the last generation's best candidate, where select has not seen it (`select_every`).
    """

    evaluations: int = 0
    generation: int = 0
    best: float | None = None
    best_record: int | None = None
    stale: int = 0
    failed_generations: int = 0
    seconds: float = 0.0
    restored: bool = False
    ended: str | None = None
    stage_evaluations: int = 0
    stage_stale: int = 0
    part: int = 0
    unscored: int | None = None


@dataclass(frozen=True)
class StageLimits:
    """What ends a stage of a schedule, and not the search.

    Attributes:
        evaluations: Its fit evaluations.
        patience: Select scores without improvement.
    """

    evaluations: int | None = None
    patience: int | None = None


def next_stage(progress: Progress, *, comparable: bool) -> Progress:
    """Where a search stands when its next stage begins.

    Args:
        progress: At the end of the stage before.
        comparable: Whether the next stage's objective is the same, so that the best so far stays the best.
    """
    begun = replace(
        progress, generation=0, failed_generations=0, stage_evaluations=0, stage_stale=0, part=0, unscored=None
    )
    begun.evaluations += progress.part > 0  # what rungs have begun counts as one
    return begun if comparable else replace(begun, best=None, best_record=None, stale=0)


def cost(candidate: Candidate) -> int:
    """How many fit evaluations a candidate counts: one, and with a Jacobian one more for each of its d neighbours."""
    return 1 + len(candidate.vector) if "jacobian" in candidate.needs else 1


def looked_at(candidate: Candidate, whole: int) -> int:
    """How many examples of the budget a candidate takes, where an evaluation has ``whole``.

    A rung takes those that it looks at; everything else takes whole evaluations, a mini-batch too.
    """
    if candidate.rung and candidate.examples is not None:
        return sum(map(len, candidate.examples.values()))
    return whole * cost(candidate)


def affordable(candidates: Sequence[Candidate], left: int | None, *, whole: int = 1, part: int = 0) -> list[Candidate]:
    """The first candidates that cost no more than ``left`` evaluations together; all of them for None.

    Args:
        candidates: What a driver asks for.
        left: Whole evaluations.
        whole: Examples of an evaluation.
        part: Examples that are gone of those left.
    """
    if left is None:
        return list(candidates)
    room = left * whole - part
    chosen: list[Candidate] = []
    for candidate in candidates:
        room -= looked_at(candidate, whole)
        if room < 0:
            break
        chosen.append(candidate)
    return chosen


def spend(progress: Progress, candidate: Candidate, whole: int) -> None:
    """Count a candidate that was judged; exact, as rungs are counted in examples."""
    evaluations, progress.part = divmod(progress.part + looked_at(candidate, whole), whole)
    progress.evaluations += evaluations
    progress.stage_evaluations += evaluations


def note_select(progress: Progress, record: int, value: float | None, *, attempt: bool) -> None:
    """Count a select score, and note whether it is the best.

    Args:
        progress: Is changed.
        record: Which record has the score.
        value: None where it does not compete: the evaluation failed, or the iterate has collapsed.
        attempt: Whether it was one to be better, which patience counts.
    """
    progress.stale += attempt
    progress.stage_stale += attempt
    if value is not None and (progress.best is None or value < progress.best):
        progress.best, progress.best_record = value, record
        progress.stale = progress.stage_stale = 0


def exhausted(budget: BudgetConfig, progress: Progress) -> str | None:
    """The reason to stop now, or None."""
    if progress.ended is not None:
        return progress.ended
    if budget.evaluations is not None and progress.evaluations >= budget.evaluations:
        return f"the budget of {budget.evaluations} evaluations is used up"
    if budget.target is not None and progress.best is not None and progress.best <= budget.target:
        return f"the target {budget.target:g} on select is reached"
    if budget.patience is not None and progress.stale >= budget.patience:
        return f"no improvement on select in {budget.patience} scores"
    return out_of_time(budget, progress)


def stage_done(limits: StageLimits, progress: Progress) -> str | None:
    """The reason to go on to the next stage, or None."""
    if limits.evaluations is not None and progress.stage_evaluations >= limits.evaluations:
        return f"the stage's {limits.evaluations} evaluations are used up"
    if limits.patience is not None and progress.stage_stale >= limits.patience:
        return f"no improvement on select in {limits.patience} scores of the stage"
    return None


def settled(budget: BudgetConfig, limits: StageLimits, progress: Progress) -> bool:
    """Whether select, or an alarm, has ended the stage: what has not been judged by now cannot count any more."""
    return (
        progress.ended is not None
        or (budget.target is not None and progress.best is not None and progress.best <= budget.target)
        or (budget.patience is not None and progress.stale >= budget.patience)
        or (limits.patience is not None and progress.stage_stale >= limits.patience)
    )


def out_of_time(budget: BudgetConfig, progress: Progress) -> str | None:
    """The reason when the clock has run out, or None."""
    if budget.minutes is not None and progress.seconds >= budget.minutes * 60:
        return f"the budget of {budget.minutes:g} minutes is used up"
    return None


def remaining(budget: BudgetConfig, progress: Progress, limits: StageLimits) -> int | None:
    """Evaluations left to the stage, None when they are not limited."""
    left = []
    if budget.evaluations is not None:
        left.append(budget.evaluations - progress.evaluations)
    if limits.evaluations is not None:
        left.append(limits.evaluations - progress.stage_evaluations)
    return min(left, default=None)
