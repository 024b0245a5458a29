"""Bands of singular components: a linear method's part per expert, or a whole method's delta, cut along its spectrum.

    bands = Bands(build_method(TsvMConfig(), experts), factors, bands=4, divide="energy", ...)
    bands.band_deltas(models, name)         # of each expert its first band, its second, ...

The last band is what the others leave of the whole, so that all of them add up to it, up to rounding; components that
are numerical noise are in the last band as well. What is no matrix is whole in the first band and absent from the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch

from optmerge.merging.methods.base import Method, Models, TensorKind
from optmerge.merging.methods.matrices import Matrix, as_matrices, summed, task_matrices
from optmerge.merging.methods.spectrum import Svd, cut_svd
from optmerge.records import Progress

Divide = Literal["energy", "count"]
Factors = Callable[[Sequence[Matrix]], Iterable[Svd]]
"""Task vectors [..., m, n] -> what is divided as singular components, the largest first."""


class Bands(Method):
    """A method's delta, or each expert's part of it, as a sum of bands.

    Args:
        method: What is divided. The deltas of `band_deltas` add up to its.
        factors: The method's parts of matrices as singular components: one `Svd` per expert, or one for all.
        bands: How many, at least 2.
        divide: See `band_numbers`.
        scale: What everything is multiplied by.
        embeddings: Whether embeddings and heads are divided (matrix) or not (whole).
        by_expert: Whether there is a part per expert; the method is then linear.
    """

    def __init__(
        self,
        method: Method,
        factors: Factors,
        *,
        bands: int,
        divide: Divide,
        scale: float,
        embeddings: Literal["whole", "matrix"],
        by_expert: bool,
    ) -> None:
        super().__init__(method.weights)
        self.method = method
        self.factors = factors
        self.bands = bands
        self.divide = divide
        self.scale = scale
        self.embeddings = embeddings
        self.by_expert = by_expert
        self.linear = method.linear
        self.needs = method.needs
        self.keeps_base = method.keeps_base

    def prepare(self, models: Models, progress: Progress | None = None) -> None:
        """See `Method.prepare`."""
        self.method.prepare(models, progress)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`: that of the method, which is the sum of all bands."""
        return self.method.delta(models, name).mul_(self.scale)

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`."""
        return [delta.mul_(self.scale) for delta in self.method.expert_deltas(models, name)]

    def divides(self, kind: TensorKind) -> bool:
        """Whether a parameter has more than its first band."""
        return kind.structure != "vector" and (self.embeddings == "matrix" or kind.role not in ("embedding", "head"))

    def count(self, kind: TensorKind) -> int:
        """How many bands a parameter has."""
        return self.bands if self.divides(kind) else 1

    def band_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """One tensor per band, expert by expert; only the first of each where the parameter is not divided."""
        kind = models.kind(name)
        wholes = self.expert_deltas(models, name) if self.by_expert else [self.delta(models, name)]
        if not self.divides(kind):
            return wholes
        found: list[torch.Tensor] = []
        for whole, part in zip(wholes, self.factors(task_matrices(models, name)), strict=True):
            rest = as_matrices(whole, kind).clone()
            numbers = band_numbers(part.sigma, self.bands, self.divide)
            for band in range(self.bands - 1):
                product = (part.u * (self.scale * part.sigma * (numbers == band)).unsqueeze(-2)) @ part.vh
                rest -= product
                found.append(product.reshape(kind.shape))
            found.append(rest.reshape(kind.shape))
        return found


def components(task_vectors: Sequence[Matrix], *, tolerance: float) -> Iterator[Svd]:
    """Each task vector's own singular components, one task vector after the other; see `cut_svd`."""
    return (cut_svd(matrix, tolerance=tolerance) for matrix in task_vectors)


def flat_components(task_vectors: Sequence[Matrix], *, tolerance: float) -> list[Svd]:
    """Those of Iso-C's delta, in the order of the summed task vectors' singular values.

    All values are the same one, up to those that are cut and are 0, so that equal energy is equally many components.
    """
    total = summed(task_vectors, (1.0,) * len(task_vectors))
    u, sigma, vh = cut_svd(total, tolerance=tolerance)
    mean = sigma.sum(dim=-1, keepdim=True) / min(total.shape[-2:])
    return [Svd(u, mean * (sigma > 0), vh)]


def band_numbers(sigma: torch.Tensor, bands: int, divide: Divide) -> torch.Tensor:
    """Which band each singular component is in.

    With ``energy`` a band ends at the component that brings all so far to its share of the sum of squares, with
    ``count`` at its share of the components. Every band has a component as long as there are any left. Values of 0 do
    not count, and are in the last band.

    Args:
        sigma: [..., r], falling, not negative.
        bands: At least 2.
        divide: By what.

    Returns:
        int64[..., r], rising from 0 and below ``bands``.
    """
    count = sigma.shape[-1]
    flat = sigma.reshape(-1, count)
    numbers = torch.empty(flat.shape, dtype=torch.int64)
    for row, values in enumerate(flat):
        there = values[values > 0].double()
        weights = there**2 if divide == "energy" else torch.ones_like(there)
        found = _numbers(weights.cumsum(0).tolist(), bands)
        numbers[row] = torch.tensor(found + [bands - 1] * (count - len(found)), dtype=torch.int64)
    return numbers.reshape(sigma.shape)


def _numbers(reached: Sequence[float], bands: int) -> list[int]:
    """The band of each component, given the sum of weights up to and with each."""
    count, band = len(reached), 0
    numbers: list[int] = []
    for position, value in enumerate(reached):
        numbers.append(band)
        full = value >= reached[-1] * (band + 1) / bands * (1.0 - 1e-12)
        needed = count - 1 - position <= bands - 1 - band  # each further band gets one of those that are left
        if band < bands - 1 and (full or needed):
            band += 1
    return numbers
