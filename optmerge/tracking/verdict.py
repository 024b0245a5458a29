"""What a run has shown, in one plain paragraph: the first thing that its report says.

    answer(view)     # "The search reaches 0.808 mean accuracy on the report split and beats the best baseline ..."

It is about the report split, and about luck: a gain whose interval holds zero is not called a gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from optmerge.tracking.markdown import number, score, signed
from optmerge.tracking.rows import Row
from optmerge.tracking.view import RunView

Verdict = Literal["better", "undecided", "worse", "unknown"]

_NOT_MERGES = ("base", "expert", "search")  # every other family is a merge made without a search


def verdict(entry: Mapping[str, Any] | None) -> Verdict:
    """What a paired comparison of result.json says about its first side."""
    if entry is None:
        return "unknown"
    if entry["low"] > 0:
        return "better"
    return "worse" if entry["high"] < 0 else "undecided"


def best_rival(view: RunView) -> Row | None:
    """The baseline that select would choose from its family and that is best on report: the one to beat."""
    rivals = [row for row in view.rows if row.kind == "baseline" and row.chosen and row.mean is not None]
    return max(rivals, key=lambda row: row.mean or 0.0, default=None)


def answer(view: RunView) -> str:
    """The first paragraph of a report."""
    row = view.search_row
    if row is None or row.mean is None:
        return _so_far(view)
    interval = "" if row.interval is None else f" (95 % interval {score(row.interval[0])} to {score(row.interval[1])})"
    reached = f"The search reaches **{score(row.mean)}** mean {view.metric} on the report split{interval}"
    rival = best_rival(view)
    if rival is None or rival.mean is None:
        return f"{reached}; there is no baseline to compare it with."
    entry = next((e for e in view.result.get("comparison", []) if e["against"] == rival.name), None)
    gap = row.mean - rival.mean
    beside = f"the best baseline, `{rival.name}` ({score(rival.mean)})"
    if entry is None:
        told = f"{_direction(gap)} {beside}, by {signed(gap)} points; no interval is known for that difference"
    else:
        level = f"{100 * entry.get('level', 0.95):g} %"
        interval = (
            f"{signed(entry['difference'])} points, {level} interval {signed(entry['low'])} to {signed(entry['high'])}"
        )
        told = {
            "better": f"**beats** {beside}: {interval}, which leaves zero out",
            "worse": f"is **worse than** {beside}: {interval}, which leaves zero out",
            "undecided": f"is **not distinguishable** from {beside}: {interval}, which holds zero",
        }[verdict(entry)]
    return f"{reached} and {told}. {_data_free(view, row)}{_finalists(view)}{_caveats(view)}".strip()


def _so_far(view: RunView) -> str:
    state = {
        "started": "The search has not begun to evaluate.",
        "running": "**The search is still running.**",
        "interrupted": "**The search was interrupted**; `optmerge resume` goes on where it stopped.",
        "failed": "**The search failed.**",
        "finished": "The search has finished without a report.",
    }[view.status]
    because = f" Reason: {view.reason}." if view.reason and view.status in ("interrupted", "failed") else ""
    because = because.replace("..", ".")
    if view.best is None:
        return f"{state}{because} After {view.evaluations} evaluations there is no value on the select split yet."
    found = f" After {view.evaluations} evaluations the lowest select objective is **{number(view.best.value)}**"
    if view.best_baseline is not None:
        name, value = view.best_baseline
        word = "below" if view.best.value < value else "not below"
        found += f", {word} that of the best baseline (`{name}`, {number(value)})"
    return f"{state}{because}{found}. The report split has not been scored for the search."


def _data_free(view: RunView, row: Row) -> str:
    """Whether a merge that needs no search does as well."""
    merges = [r for r in view.rows if r.kind == "baseline" and r.family not in _NOT_MERGES and r.mean is not None]
    above = sorted((r for r in merges if (r.mean or 0.0) > (row.mean or 0.0)), key=lambda r: -(r.mean or 0.0))
    if not merges:
        return ""
    if not above:
        return "No merge without a search scores higher. "
    chosen = [r for r in above if r.chosen]
    if chosen:
        names = ", ".join(f"`{r.name}` ({score(r.mean)})" for r in chosen)
        return f"**A merge that needs no search scores higher: {names}.** "
    names = ", ".join(f"`{r.name}` ({score(r.mean)})" for r in above[:3])
    return f"A merge without a search would score higher on report, though select would not have chosen it: {names}. "


def _finalists(view: RunView) -> str:
    """Whether the choice among the best iterates is more than luck, on select and on report."""
    others = view.finalists[1:]
    if not others:
        return ""
    said = ""
    lead = others[0].get("lead")
    if lead is not None and lead["low"] <= 0:
        said = (
            f"Its lead on select over the next iterate ({number(lead['difference'])}, 95 % interval "
            f"{number(lead['low'])} to {number(lead['high'])}) is within the noise of the select examples. "
        )
    better = [other for other in others if other["behind"]["high"] < 0]
    worse = [other for other in others if other["behind"]["low"] > 0]
    if better:
        first = max(better, key=lambda other: other["mean"])
        apart = first["behind"]
        return said + (
            f"Of the {len(view.finalists)} best iterates on select, the one of rank {first['rank']} scores higher on "
            f"report ({_points(-apart['difference'], -apart['high'], -apart['low'])}); select did not choose it, and "
            "report never steers. "
        )
    if not worse:
        return f"{said}The {len(view.finalists)} best iterates on select cannot be told apart on report. "
    return said


def _points(difference: float, low: float, high: float) -> str:
    return f"{signed(difference)} points, 95 % interval {signed(low)} to {signed(high)}"


def _caveats(view: RunView) -> str:
    if view.result.get("transductive"):
        return "The search was transductive: it was fitted on the report split's inputs. "
    return ""


def _direction(gap: float) -> str:
    return "lies above" if gap > 0 else "does not beat"
