"""What is kept of an expert's predictions, and the same of a merged model's: some classes, the rest as one, and draws.

    rows = summarise(logits, keep, starts)           # the expert's, once
    view = rows.at(temperature)                      # what a term compares with
    log_q = coarse_log_probs(merged, view.indices, view.drawn)

Of a large vocabulary the k likeliest classes are kept, all others count as one, and m classes are drawn from among
those others, by the expert's own probabilities. With u = q / p of a class, and u0 that of all others together, a
divergence D(p, q) = sum over classes of p f(u) is

    D  =  D of the k + 1 coarse classes  +  sum over the others of p (f(u) - f(u0)),

and the second sum is estimated by its mean over the draws: without bias, and as 0 where p and q agree. A term may
subtract c (u - u0) from each summand, which adds up to nothing since the others' q is known exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optmerge.objective.base import rows_at_once
from optmerge.records import SplitName

_WEYL = (0.7548776662466927, 0.5698402909980532)  # 1/g and 1/g^2 with g^3 = g + 1: even in two dimensions


@dataclass(frozen=True)
class Keep:
    """What is kept of an expert's outputs.

    Attributes:
        classes: How many of the likeliest classes; None is all.
        layers: Of which transformer layers hidden states are kept, on fit and select.
        project: Dimensions that they are projected to (`optmerge.objective.projection`); None keeps them as they are.
        samples: How many classes are drawn from among the others.
        temperatures: Other than 1, at which terms look at the predictions; in order.
    """

    classes: int | None
    layers: tuple[int, ...] = ()
    project: int | None = None
    samples: int = 0
    temperatures: tuple[float, ...] = ()

    def layers_on(self, split: SplitName) -> tuple[int, ...]:
        """The layers on one split: none on report, whose metrics look at predictions only."""
        return () if split == "report" else self.layers

    def identity(self, split: SplitName) -> list[object]:
        """What tells outputs that are kept so from others, as data."""
        layers = self.layers_on(split)
        return [self.classes, self.samples, self.temperatures, layers, self.project if layers else None]

    def whole(self, classes: int) -> bool:
        """Whether every class of a head of so many is kept: draws, or the column of the others, would take no less."""
        return self.classes is None or self.classes + max(1, self.samples) >= classes

    def columns(self, classes: int) -> int:
        """Log-probabilities per row of a head of so many classes, draws aside."""
        return classes if self.classes is None or self.whole(classes) else self.classes + 1

    def row_bytes(self, classes: int) -> int:
        """What is kept of a row of logits over so many classes, in bytes."""
        columns = self.columns(classes)
        if columns == classes:
            return 4 * columns + 4
        index = index_dtype(classes).itemsize
        return 4 * columns + index * (columns - 1) + (4 + index) * self.samples + 8 * len(self.temperatures) + 4

    def width(self, width: int) -> int:
        """Numbers per hidden state of a layer of so many."""
        return width if self.project is None else min(width, self.project)


def index_dtype(classes: int) -> torch.dtype:
    """How classes are named in what is kept."""
    return torch.int16 if classes <= 1 << 15 else torch.int32


@dataclass(frozen=True, eq=False)
class View:
    """An expert's predictions at one temperature.

    Attributes:
        log_probs: fp32[N, C], or [N, k + 1] where only some classes are kept: the last column is the log of the
            probability of all others together.
        indices: int64[N, k], which classes are kept; None for all, in order.
        drawn: int64[N, m], classes drawn from the others; None where there are none.
        drawn_log_probs: fp32[N, m], their log-probabilities.
        log_weights: fp32[N, m]: the mean over draws of exp(log_weights) g is an estimate of the sum over the others of
            p g.
    """

    log_probs: Tensor
    indices: Tensor | None
    drawn: Tensor | None = None
    drawn_log_probs: Tensor | None = None
    log_weights: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of N rows of an expert's logits; see `View` for the first four.

    Attributes:
        log_probs: At temperature 1.
        choice: int[N], the expert's likeliest class.
        tempered: Temperature -> fp32[N, 2]: at it, the logsumexp over all classes of log p / T, and the log of the
            probability of the others together.
    """

    log_probs: Tensor
    indices: Tensor | None
    choice: Tensor
    drawn: Tensor | None = None
    drawn_log_probs: Tensor | None = None
    tempered: dict[float, Tensor] = field(default_factory=dict)

    def at(self, temperature: float) -> View:
        """The predictions at a temperature.

        Raises:
            ValueError: Some classes are kept, and nothing was noted for this temperature.
        """
        if self.indices is None:
            return View(self.log_probs if temperature == 1.0 else (self.log_probs / temperature).log_softmax(-1), None)
        if self.drawn is None or self.drawn_log_probs is None:
            return View(self._coarse(temperature)[0], self.indices)
        coarse, normaliser = self._coarse(temperature)
        drawn = self.drawn_log_probs / temperature - normaliser
        # Drawn at the highest temperature, whose probabilities are the flattest.
        highest = max((1.0, *self.tempered))
        others, noted = self._coarse(highest)
        weights = drawn - (self.drawn_log_probs / highest - noted) + others[:, -1:]
        none = others[:, -1:] == -float("inf")  # nothing is left to draw from
        return View(coarse, self.indices, self.drawn, drawn, weights.masked_fill(none, -float("inf")))

    def _coarse(self, temperature: float) -> tuple[Tensor, Tensor | float]:
        """[N, k + 1] at a temperature, and what was subtracted from log p / T."""
        if temperature == 1.0:
            return self.log_probs, 0.0
        if temperature not in self.tempered:
            raise ValueError(f"nothing is kept of the expert at temperature {temperature}")
        normaliser, others = torch.split(self.tempered[temperature], 1, -1)
        return torch.cat([self.log_probs[:, :-1] / temperature - normaliser, others], -1), normaliser


def coarse_log_probs(logits: Tensor, kept: Tensor | None, drawn: Tensor | None = None) -> Tensor:
    """Log-probabilities of the kept classes, of all others together, and of the drawn ones among the others.

    The others are summed as they are (their logits' logsumexp), because 1 minus the kept ones' sum would lose its
    digits, and its gradient, as soon as the kept classes hold nearly everything.

    Args:
        logits: [N, C].
        kept: int64[N, k] with k < C; None keeps all.
        drawn: int64[N, m], or None.

    Returns:
        [N, C], [N, k + 1], or [N, k + 1 + m].
    """
    if kept is None:
        return logits.log_softmax(-1)
    total = logits.logsumexp(-1, keepdim=True)
    # Where no other class is possible, the slope of the logsumexp of nothing but -inf would be NaN.
    least = torch.finfo(logits.dtype).min / 2
    others = logits.scatter(-1, kept, least).clamp(min=least).logsumexp(-1, keepdim=True)
    others = others.masked_fill(others <= least / 2, -float("inf"))
    parts = [logits.gather(-1, kept), others]
    return torch.cat(parts if drawn is None else [*parts, logits.gather(-1, drawn)], -1) - total


def log_ratios(log_q: Tensor, drawn_p: Tensor, others_p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log(q / p) of the draws and of all others together, and the draws' weights; all of them finite.

    Args:
        log_q: [N, 1 + m], of the merged model: the others together, then the draws.
        drawn_p: [N, m], `View.drawn_log_probs`.
        others_p: [N, 1], the log of the others' probability.
        weights: [N, m], `View.log_weights`.

    Returns:
        log u [N, m], log u0 [N, 1], and the weights [N, m]. Where one side gives the others no probability at all, or a
        draw none, the coarse divergence or the draw's weight has said so already: ratio and weight are 0.
    """
    others_q, drawn_q = log_q[:, :1], log_q[:, 1:]
    possible = (others_q > -float("inf")) & (others_p > -float("inf"))
    alive = possible & (weights > -float("inf")) & (drawn_q > -float("inf"))
    ratio = torch.where(alive, drawn_q - drawn_p, 0.0)
    base = torch.where(possible, others_q - others_p, 0.0)
    return torch.where(alive, ratio, base), base, torch.where(alive, weights, -float("inf")).exp()


def summarise(logits: Tensor, keep: Keep, starts: Tensor) -> Kept:
    """What is kept of rows of logits.

    Args:
        logits: [N, C], any floating dtype.
        keep: What.
        starts: fp64[N] in [0, 1), where each row's draws begin; see `weyl`.
    """
    rows = rows_at_once(logits.shape[-1])
    pieces = [
        _summary(chunk.float(), keep, start)
        for chunk, start in zip(torch.split(logits, rows), torch.split(starts, rows), strict=True)
    ]
    return pieces[0] if len(pieces) == 1 else concatenate(pieces)


def concatenate(pieces: Sequence[Kept]) -> Kept:
    """Rows one behind the other; at least one piece."""

    def of(name: str) -> Tensor | None:
        found = [value for value in (getattr(piece, name) for piece in pieces) if value is not None]
        return torch.cat(found) if found else None

    log_probs, choice = of("log_probs"), of("choice")
    assert log_probs is not None
    assert choice is not None
    tempered = {t: torch.cat([piece.tempered[t] for piece in pieces]) for t in pieces[0].tempered}
    return Kept(log_probs, of("indices"), choice, of("drawn"), of("drawn_log_probs"), tempered)


def weyl(positions: Tensor, within: Tensor) -> Tensor:
    """Numbers in [0, 1) that are even over rows: of each row's example and its place in it (Weyl 1916).

    Args:
        positions: int64[N], the rows' examples.
        within: int64[N], the rows' places in their examples.

    Returns:
        fp64[N]. They depend on nothing else, so that no micro-batch changes what is drawn.
    """
    return (0.5 + positions.double() * _WEYL[0] + within.double() * _WEYL[1]).remainder(1.0)


def _summary(logits: Tensor, keep: Keep, starts: Tensor) -> Kept:
    choice, classes = logits.argmax(-1).int(), logits.shape[-1]
    if keep.classes is None or keep.whole(classes):
        return Kept(logits.log_softmax(-1), None, choice)
    kept = logits.topk(keep.classes, -1).indices
    log_probs = coarse_log_probs(logits, kept)
    every = logits - logits.logsumexp(-1, keepdim=True)
    tempered = {
        t: torch.cat([(every / t).logsumexp(-1, keepdim=True), coarse_log_probs(logits / t, kept)[:, -1:]], -1)
        for t in keep.temperatures
    }
    index = index_dtype(classes)
    if not keep.samples:
        return Kept(log_probs, kept.to(index), choice, tempered=tempered)
    drawn = _draw(every / max((1.0, *keep.temperatures)), kept, starts, keep.samples)
    return Kept(log_probs, kept.to(index), choice, drawn.to(index), every.gather(-1, drawn), tempered)


def _draw(logits: Tensor, kept: Tensor, starts: Tensor, count: int) -> Tensor:
    """Systematic sampling from what is not kept: (start + j) / count on the running sum of its probabilities.

    Madow 1949. Among draws of one row a class comes at least floor(count p) and at most ceil(count p) times.
    """
    rest = logits.scatter(-1, kept, -float("inf"))
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    sums = (rest - rest.amax(-1, keepdim=True).clamp(min=torch.finfo(rest.dtype).min)).to(precise).exp().cumsum(-1)
    steps = torch.arange(count, device=logits.device, dtype=precise)
    wanted = (starts.to(logits.device, precise)[:, None] + steps) / count * sums[:, -1:]
    # The first class whose running sum lies above: one without probability never is.
    return torch.searchsorted(sums, wanted, right=True).clamp(max=logits.shape[-1] - 1)
