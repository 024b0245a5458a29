"""The archive of natural niches: individuals live off the examples that they solve and others do not.

Every example j is a resource of capacity c_j. With s_kj in [0, 1] what individual k scores on it, those who score share
it (Abrantes, Lange & Tang 2025, arXiv 2508.16204; natural_niches' code, where c_j = 1):

    z_j    = sum_k s_kj                                           how crowded example j is
    f_k    = sum_j c_j s_kj / z_j^alpha                           fitness of k
    g(A,B) = sum_j c_j max(0, s_Bj - s_Aj) / z_j^alpha            how attractive B is to A: what it has and A lacks

An example that one individual alone solves feeds it whole, so specialists stay beside those who are good on average.
alpha = 0 is no competition: fitness is then the score. A resource that nobody scores on has z_j = 1.

    archive = Archive(capacity=20, alpha=1.0)
    archive.insert(vector, scores, value=0.4)
    archive.attraction(0)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optmerge.drivers.variables import read_only
from optmerge.records import Vector

Scores = npt.NDArray[np.float64]


class Archive:
    """At most ``capacity`` individuals; who has the least fitness leaves.

    Attributes:
        vectors: The individuals, oldest first.
        scores: float64[k, N], theirs on every example.
        values: The objective at each, lower is better; decides among those of equal fitness.
        weights: float64[N], the capacities c_j.

    >>> import numpy as np
    >>> archive = Archive(capacity=2, alpha=1.0)
    >>> for vector, scores in ([0.0], [1, 0]), ([1.0], [1, 0]), ([2.0], [0, 1]):
    ...     archive.insert(np.array(vector), np.array(scores), value=0.0)
    >>> [vector.tolist() for vector in archive.vectors]  # two did the same, one what nobody else did
    [[1.0], [2.0]]
    """

    def __init__(self, capacity: int, alpha: float) -> None:
        self.capacity = capacity
        self.alpha = alpha
        self.vectors: list[Vector] = []
        self.scores: Scores = np.zeros((0, 0))
        self.values: list[float] = []
        self.weights: Scores = np.zeros(0)

    def __len__(self) -> int:
        return len(self.vectors)

    def insert(self, vector: Vector, scores: npt.ArrayLike, *, value: float, weights: Scores | None = None) -> None:
        """Add an individual; where there are too many, the least fit one leaves, which may be the new one.

        Among equally fit ones the worst value leaves, then the oldest, so that an archive on a plateau drifts.

        Args:
            vector: Where it is.
            scores: float64[N] in [0, 1], on every example; N is the first individual's.
            value: The objective there.
            weights: float64[N], the capacities of the examples, read with the first individual only; None: all 1.

        Raises:
            ValueError: Not as many scores as the others have.
        """
        row = np.array(scores, dtype=np.float64)
        if not self.vectors:
            self.scores = np.zeros((0, len(row)))
            self.weights = np.ones(len(row)) if weights is None else np.array(weights, dtype=np.float64)
        if row.shape != self.weights.shape:
            raise ValueError(f"scores of {len(row)} examples, where the archive has those of {len(self.weights)}")
        self.vectors.append(read_only(vector))
        self.scores = np.vstack([self.scores, row])
        self.values.append(float(value))
        if len(self) > self.capacity:
            fitness = self.fitness()
            self._remove(min(range(len(self)), key=lambda k: (fitness[k], -self.values[k], k)))

    def fitness(self) -> Scores:
        """f_k of every individual, float64[k]."""
        found: Scores = self.scores @ self._worth()
        return found

    def attraction(self, to: int) -> Scores:
        """g(A, B) of every individual B for A = ``to``, float64[k]; 0 for itself."""
        found: Scores = np.maximum(0.0, self.scores - self.scores[to]) @ self._worth()
        return found

    def coverage(self) -> float:
        """What the archive scores as a whole: the mean over examples of the best score of anyone, in [0, 1]."""
        return float(self.scores.max(axis=0).mean()) if self.vectors else 0.0

    def uniform(self) -> bool:
        """Whether all individuals are the same vector, bit for bit."""
        return all(vector.tobytes() == self.vectors[0].tobytes() for vector in self.vectors[1:])

    def restore(self, vectors: Scores, scores: Scores, values: list[float], weights: Scores) -> None:
        """Take over individuals that another archive had, [k, d], [k, N], [k] and [N]."""
        if not len(vectors) == len(scores) == len(values) or scores.shape[1] != len(weights):
            raise ValueError("the archive's parts do not belong together")
        self.vectors = [read_only(vector) for vector in vectors]
        self.scores, self.values, self.weights = scores.copy(), list(values), weights.copy()

    def _worth(self) -> Scores:
        """What a score of 1 on each example is worth: c_j / z_j^alpha."""
        crowd = self.scores.sum(axis=0)
        worth: Scores = self.weights / np.where(crowd == 0.0, 1.0, crowd) ** self.alpha
        return worth

    def _remove(self, index: int) -> None:
        del self.vectors[index], self.values[index]
        self.scores = np.delete(self.scores, index, axis=0)
