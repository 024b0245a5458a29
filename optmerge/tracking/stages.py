"""The stages of a schedule in the report: what each began with, reached, and ended for.

report += stage_section(view)          # Markdown parts; none for a search without a schedule
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optmerge.runner.finalists import judged_alike
from optmerge.tracking.markdown import number, table
from optmerge.tracking.view import RunView


def stage_section(view: RunView) -> list[str]:
    """The table of stages, once the search has ended."""
    ends: Sequence[Mapping[str, Any]] = view.result.get("stages") or []
    if not ends:
        return []
    lines = [
        [
            str(place + 1),
            end["driver"],
            f"{end['granularity']}, {end['dimension']:,}",
            _terms(view.objectives[place]),
            str(end["evaluations"]),
            number(end["start"]),
            number(end["best"]["select"]),
            end["reason"],
        ]
        for place, end in enumerate(ends)
    ]
    head = ["", "driver", "space, variables", "objective", "evaluations", "select before", "best", "ended because"]
    missing = len(view.stages) - len(ends)
    notes = [
        "Each stage begins at the best on select so far; *select before* is its value by the stage's objective. The "
        "first begins at the configured start.",
        f"The search ended before {'its last stage' if missing == 1 else f'the last {missing} stages'} began."
        if missing
        else "",
    ]
    if judged_alike(view.objectives, len(ends) - 1).start:
        notes.append("Values of different objectives cannot be compared; the tables above are by the last one's.")
    return ["## Stages", table(head, lines, left=(1, 2, 3, 7)), " ".join(note for note in notes if note)]


def _terms(objective: Mapping[str, Any]) -> str:
    return " + ".join(str(term["name"]) for term in objective.get("terms", []))
