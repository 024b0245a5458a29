"""Tables and the plot of `time_to_quality`.

markdown(results)
plot(results, Path("time-to-quality.png"))
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.quality_curves import Curve
from optmerge.atomic import atomic_path
from optmerge.tracking.markdown import NONE, number, score, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REFERENCE = "mergekit-evolve"
ADAM = "start, Adam"
CMA = "start, CMA-ES"
BOTH = "start, Adam, CMA-ES"
PLAIN = "Adam, same objective"
GUIDED = "Adam, and expert-kl"
OTHER = "Adam, expert-kl"
COLD = "cold CMA-ES"  # ours without a start: from 1/n, as the reference
ONE_TENTH, ONE_FIFTH = 10, 5  # of the references' cost, in which ours must reach what they reach
COLOURS = {
    "AdaMerging": "#b2182b",
    REFERENCE: "#b2182b",
    COLD: "#999999",
    CMA: "#67a9cf",
    ADAM: "#2166ac",
    BOTH: "#1b7837",
    PLAIN: "#67a9cf",
    GUIDED: "#2166ac",
}


@dataclass(frozen=True, slots=True)
class AdaMergingSide:
    """The comparison with AdaMerging.

    Attributes:
        theirs: Its curve, with its final report accuracy.
        steps: That it made.
        before: Its report accuracy before the first.
        ours: Judged by the same objective on select, one per side and seed.
        other: Ours with expert-kl alone, whose values are of another objective.
    """

    theirs: Curve
    steps: int
    before: float | None
    ours: list[Curve]
    other: Curve

    def times_faster(self, curve: Curve) -> float | None:
        """Their seconds by ours until we have their final value, the start included; None where we never have."""
        cost = curve.cost_to(self.theirs.final)
        return None if cost is None else self.theirs.total.seconds / cost.seconds


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """What was measured on one suite; no ``mergekit`` where that comparison is still to come."""

    name: str
    title: str
    adamerging: AdaMergingSide
    mergekit: list[Curve]

    def sides(self) -> dict[str, list[Curve]]:
        """Side -> its seeds, of the comparison with mergekit-evolve."""
        found: dict[str, list[Curve]] = {}
        for curve in self.mergekit:
            found.setdefault(curve.side, []).append(curve)
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it."""
        side = self.adamerging
        return {
            "name": self.name,
            "title": self.title,
            "adamerging": {
                "theirs": side.theirs.to_json(),
                "steps": side.steps,
                "before": side.before,
                "ours": [curve.to_json() for curve in side.ours],
                "other": side.other.to_json(),
            },
            "mergekit": [curve.to_json() for curve in self.mergekit],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SuiteResult:
        """What `to_json` gave."""
        side = data["adamerging"]
        return cls(
            data["name"],
            data["title"],
            AdaMergingSide(
                Curve.from_json(side["theirs"]),
                side["steps"],
                side["before"],
                [Curve.from_json(curve) for curve in side["ours"]],
                Curve.from_json(side["other"]),
            ),
            [Curve.from_json(curve) for curve in data["mergekit"]],
        )


def markdown(results: Sequence[SuiteResult]) -> str:
    """Both tables, how to read them, and what holds."""
    return "\n".join(
        [
            "### Against FusionBench's layer-wise AdaMerging: seconds until its final value on select",
            "",
            table(_ADAMERGING, [row for result in results for row in _adamerging_rows(result)], left=(0, 1)),
            "",
            *(f"- {line}" for result in results for line in _adamerging_verdict(result)),
            "- theirs: the seconds of its stepping alone. ours: until the first look at select that is at or below its "
            "final value, these looks included; all: with what had to be there before (the base on fit; the teachers' "
            "outputs, where the objective looks at the experts; baselines on select, where they chose the start).",
            "- select: mean entropy of the predictions over the logarithm of the number of classes; of language models "
            "cross-entropy in nats per token. Both sides start from 0.3, and this value on select chooses our iterate "
            "too. and expert-kl: our objective has a tenth of expert-kl beside it. expert-kl alone has its own select "
            "and start, so that its row shows the whole search.",
            "",
            "### Against mergekit-evolve's settings: select expert-kl at equal forward passes",
            "",
            table(_MERGEKIT, [row for result in results for row in _mergekit_rows(result)], left=(0, 1)),
            "",
            *(f"- {line}" for result in results for line in _mergekit_verdict(result)),
            "- value: mean over the seeds [lowest, highest], at as many forward passes over the fit split as "
            f"{REFERENCE} takes; 1 at the base, lower is better. A gradient counts as three. Teachers, baselines and "
            f"every look at select count for our sides; {REFERENCE} is given its looks at select.",
            "",
        ]
    )


_ADAMERGING = ["suite", "side", "steps", "select", "report", "at crossing", "search s", "all s", "faster", "passes"]


def _adamerging_rows(result: SuiteResult) -> list[list[str]]:
    side = result.adamerging
    theirs = side.theirs
    rows = [
        [
            result.name,
            "AdaMerging",
            str(side.steps),
            f"{number(theirs.points[0].value)} to {number(theirs.final)}",
            f"{score(side.before)} to {score(theirs.report)}",
            NONE,
            f"{theirs.total.seconds:.1f}",
            f"{theirs.total.seconds:.1f}",
            NONE,
            f"{theirs.total.passes:.0f}",
        ]
    ]
    for curve in side.ours:
        point, cost, faster = curve.reached(theirs.final), curve.cost_to(theirs.final), side.times_faster(curve)
        rows.append(
            [
                result.name,
                f"{curve.side}, seed {curve.seed}",
                NONE,
                f"{number(curve.points[0].value)} to {number(curve.final)}",
                score(curve.report),
                score(curve.crossing),
                NONE if point is None else f"{point.cost.seconds:.1f}",
                NONE if cost is None else f"{cost.seconds:.1f}",
                NONE if faster is None else f"{faster:.1f}x",
                NONE if cost is None else f"{cost.passes:.1f}",
            ]
        )
    other = side.other
    search = other.points[-1].cost.seconds
    rows.append(
        [
            result.name,
            other.side,
            NONE,
            NONE,
            score(other.report),
            NONE,
            f"{search:.1f}",
            f"{other.total.seconds:.1f}",
            f"{theirs.total.seconds / other.total.seconds:.1f}x",
            f"{other.total.passes:.1f}",
        ]
    )
    return rows


def _adamerging_verdict(result: SuiteResult) -> list[str]:
    side = result.adamerging
    told = []
    for name in dict.fromkeys(curve.side for curve in side.ours):
        curves = [curve for curve in side.ours if curve.side == name]
        times = [side.times_faster(curve) for curve in curves]
        known = [value for value in times if value is not None]
        what = f"in 1/{min(known):.1f} of its time or less" if known else "never"
        what += "" if len(known) == len(times) else f", on {len(known)} of {len(times)} seeds"
        fast = len(known) == len(times) and min(known) >= ONE_TENTH
        theirs = side.theirs.report or 0.0
        crossing = all(curve.crossing is not None and curve.crossing >= theirs for curve in curves)
        final = all(curve.report is not None and curve.report >= theirs for curve in curves)
        told.append(
            f"{result.name}, {name}: its final value is reached {what} (1/{ONE_TENTH} on every seed: {_said(fast)}); "
            f"report accuracy at least AdaMerging's there: {_said(crossing)}, at the end: {_said(final)}."
        )
    return told


_MERGEKIT = ["suite", "side", "value", "report", "better", "passes to its final value", "fewer, worst seed"]


def _mergekit_rows(result: SuiteResult) -> list[list[str]]:
    rows = []
    for side, curves in result.sides().items():
        values = [value for value, _ in _paired(result, side)]
        reports = [curve.report for curve in curves if curve.report is not None]
        better, passes, ratio = NONE, NONE, NONE
        if side != REFERENCE:
            won = sum(mine < theirs for mine, theirs in _paired(result, side))
            better = f"{won} of {len(curves)}"
            costs = _costs(result, side)
            known = [cost for cost in costs if cost is not None]
            passes = f"{statistics.median(known):.1f}" if known else NONE
            passes += "" if len(known) == len(costs) else f" ({len(known)} of {len(costs)})"
            ratio = f"{_total(result) / max(known):.1f}x" if len(known) == len(costs) else NONE
        rows.append(
            [
                result.name,
                side,
                f"{number(statistics.fmean(values))} [{number(min(values))}, {number(max(values))}]",
                score(statistics.fmean(reports)) if reports else NONE,
                better,
                passes,
                ratio,
            ]
        )
    return rows


def _total(result: SuiteResult) -> float:
    return result.sides()[REFERENCE][0].total.passes


def _paired(result: SuiteResult, side: str) -> list[tuple[float, float]]:
    """A side's values and the reference's, seed by seed, at the passes that the reference takes."""
    sides = result.sides()
    return [
        (mine.at_passes(_total(result)), theirs.final)
        for mine, theirs in zip(sides[side], sides[REFERENCE], strict=True)
    ]


def _costs(result: SuiteResult, side: str) -> list[float | None]:
    """Passes until the reference's final value, seed by seed."""
    sides = result.sides()
    costs = [mine.cost_to(theirs.final) for mine, theirs in zip(sides[side], sides[REFERENCE], strict=True)]
    return [None if cost is None else cost.passes for cost in costs]


def _mergekit_verdict(result: SuiteResult) -> list[str]:
    told: list[str] = []
    if not result.mergekit:
        return told
    measured = result.sides()
    for side in (name for name in (CMA, ADAM, BOTH) if name in measured):
        pairs, costs = _paired(result, side), _costs(result, side)
        better = all(mine < theirs for mine, theirs in pairs)
        worst = max((math.inf if cost is None else cost) for cost in costs)
        told.append(
            f"{result.name}, {side}: better at equal passes on every seed: {_said(better)}; reaches its final value in "
            f"at most 1/{ONE_FIFTH} of them on every seed: {_said(worst <= _total(result) / ONE_FIFTH)}."
        )
    return told


def _said(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def plot(results: Sequence[SuiteResult], path: Path) -> None:
    """Select objective against cost, a row per suite: against AdaMerging by seconds, against mergekit by passes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4 * max(1, len(results))), layout="constrained")
    axes = figure.subplots(max(1, len(results)), 2, squeeze=False)
    for (left, right), result in zip(axes, results, strict=False):
        side = result.adamerging
        _draw(left, side.theirs, COLOURS["AdaMerging"], seconds=True)
        seen: set[str] = set()
        for curve in side.ours:
            _draw(left, curve, COLOURS[curve.side], seconds=True, label=None if curve.side in seen else curve.side)
            seen.add(curve.side)
        left.axhline(side.theirs.final, color=COLOURS["AdaMerging"], linewidth=0.6, linestyle="dashed")
        left.set(title=result.title, xlabel="seconds, the start included", ylabel="AdaMerging's objective on select")
        for name, curves in result.sides().items():
            for place, curve in enumerate(curves):
                _draw(right, curve, COLOURS[name], seconds=False, label=name if place == 0 else None)
        right.set(title=result.title, xlabel="forward passes, the start included", ylabel="expert-kl on select")
        for each in (left, right):
            each.set(xscale="log", yscale="log")
            each.grid(alpha=0.3, which="both", linewidth=0.4)
            if each.lines:
                each.legend(fontsize="small", frameon=False)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]


def _draw(axes: Axes, curve: Curve, colour: str, *, seconds: bool, label: str | None = "") -> None:
    """One curve; without a label it is not in the legend, and "" stands for its side."""
    costs = [curve.start + point.cost for point in curve.points]
    across = [cost.seconds if seconds else cost.passes for cost in costs]
    known = [(x, point.value) for x, point in zip(across, curve.points, strict=True) if x > 0]
    axes.step(
        [x for x, _ in known],
        [value for _, value in known],
        where="post",
        color=colour,
        linewidth=1.2,
        label=curve.side if label == "" else label,
    )
