"""A fold over experts: each is added to the merge of those before it, without what would disturb that merge.

    method = ProjectedFold(order=(0, 2, 1), share=0.5, tolerance=1e-6, others="sum", embeddings="sum")
    method.prepare(models)          # the norms of the task vectors and of the merge, over the whole model
    method.delta(models, name)

Tang et al. 2025, "Merging Models on the Fly Without Retraining" (OPCM). After expert t the paper's merged delta is
M_t = N_t / lambda_t with N_t = lambda_{t-1} M_{t-1} + (expert t's task vector, projected) = N_{t-1} + projection. Since
the projection depends on the singular vectors of M_{t-1} and on shares of its singular values, which N_{t-1} has as
well, N is folded one parameter at a time; only the last division, which gives the merge the mean norm of the task
vectors, looks at the whole model. So the state of the fold is one parameter's merge, and the model is read twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from optmerge.config.methods import Embeddings, Others
from optmerge.merging.methods.base import Method, Models
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.jointly import Jointly
from optmerge.merging.methods.matrixwise import plain_factor, routed
from optmerge.merging.methods.spectrum import cut_svd
from optmerge.merging.methods.vectors import Chunk
from optmerge.records import Progress


class ProjectedFold(Method):
    """One expert after the other; the result has the mean norm of the task vectors.

    Args:
        order: Positions of the experts, in the order in which they are merged.
        share: See `projected`.
        tolerance: See `projected`.
        others: What vectors get before the division: norms, biases, scalars.
        embeddings: What embeddings and heads get before it.
    """

    def __init__(
        self, order: tuple[int, ...], *, share: float, tolerance: float, others: Others, embeddings: Embeddings
    ) -> None:
        super().__init__((1.0,) * len(order))
        self.others = others
        self.embeddings = embeddings
        merge = partial(fold, order=order, share=share, tolerance=tolerance)
        self._folded = Jointly(self.weights, merge, others=others, embeddings=embeddings)
        self._task_vectors = Elementwise(self.weights)
        self._prepared: tuple[Models, float] | None = None

    def prepare(self, models: Models, progress: Progress | None = None) -> None:
        """Fold every parameter once, for the norm of the whole; see `Method.prepare`."""
        squares = torch.zeros(len(models.experts), dtype=torch.float64)
        merged = 0.0
        for done, name in enumerate(models.names):
            own, whole = self._squares(models, name)
            squares += own
            merged += whole
            if progress:
                progress("norms", done + 1, len(models.names))
        mean = float(squares.sqrt().mean())
        self._prepared = (models, mean / math.sqrt(merged) if merged > 0 else 0.0)  # 1 / lambda_T

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        if self._prepared is None or self._prepared[0] is not models:
            self.prepare(models)
        assert self._prepared is not None
        return self._folded.delta(models, name).mul_(self._prepared[1])

    def _squares(self, models: Models, name: str) -> tuple[torch.Tensor, float]:
        """The squared norm of each task vector of one parameter, and that of their merge before the division."""
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule == "matrix":
            deltas = self._task_vectors.expert_deltas(models, name)
            own = torch.stack([_square(delta) for delta in deltas])
            return own, float(_square(self._folded.merged(deltas, kind)))
        vectors, factor = self._task_vectors.vectors(models), plain_factor(rule, len(self.weights))
        own, whole = torch.zeros(len(self.weights), dtype=torch.float64), 0.0
        streams: list[Iterator[Chunk]] = [vectors.chunks(expert, name) for expert in models.experts]
        for chunks in zip(*streams, strict=True):
            values = torch.stack([chunk.values for chunk in chunks])
            own += torch.stack([_square(value) for value in values])
            whole += float(_square(values.sum(dim=0).mul_(factor)))
        return own, whole


def _square(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares, in fp64."""
    norm: torch.Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm.square_()


def fold(deltas: Sequence[torch.Tensor], *, order: Sequence[int], share: float, tolerance: float) -> torch.Tensor:
    """N_K of the module's first lines.

    Args:
        deltas: K task vectors, [..., m, n] each, fp32 or fp64; finite.
        order: Their positions, in the order of the fold.
        share: See `projected`.
        tolerance: Likewise.

    Returns:
        [..., m, n].
    """
    merged = deltas[order[0]]
    for expert in order[1:]:
        merged = merged + projected(deltas[expert], merged, share=share, tolerance=tolerance)
    return merged


def projected(delta: torch.Tensor, merged: torch.Tensor, *, share: float, tolerance: float) -> torch.Tensor:
    """A task vector without its part along the merge, and with nothing in the merge's leading directions.

    With U diag(sigma) V^T the merge and P = U^T delta V, P loses its diagonal, which makes the result orthogonal to the
    merge, and the block of the leading components (Tang et al. 2025, the authors' code; its formula in the paper may be
    read to leave out the blocks that mix leading and other components as well). In the thin SVD, where U and V are no
    bases of the whole space, that is delta - U B V^T with B the entries of P that are lost.

    Args:
        delta: [..., m, n], fp32 or fp64; finite.
        merged: [..., m, n].
        share: Components are leading as long as their singular values sum to at most this share of the sum of all.
        tolerance: Singular values of the merge at or below this share of the largest are cut: they have no directions
            that could be kept free.

    Returns:
        [..., m, n].
    """
    u, sigma, vh = cut_svd(merged, tolerance=tolerance)
    coordinates = u.mT @ delta @ vh.mT
    reached = sigma.double().cumsum(dim=-1)
    leading = reached <= share * reached[..., -1:]
    lost = leading.unsqueeze(-1) & leading.unsqueeze(-2)
    lost = lost | torch.eye(sigma.shape[-1], dtype=torch.bool)
    return delta - u @ (coordinates * lost) @ vh
