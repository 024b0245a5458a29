"""What a term of the coefficients may know of them beside their values: start, bounds, and what they multiply.

    geometry = Geometry(start=start, lower=lower, upper=upper, free=free, sizes=sizes, layers=layers, kinds=kinds,
                        norms=norms, cosines=lambda: measured())
    geometry.norms                              # fp64[G, D]

Rows are the tensor groups of the search space, columns its directions. Everything is on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

Measured = Tensor | Callable[[], Tensor]


class Geometry:
    """A searched table of coefficients [G, D].

    Attributes:
        start: fp64[G, D], the coefficients that the search began with.
        lower: fp64[G, D], the lowest value of what sets a coefficient; the coefficient itself where it is frozen.
        upper: fp64[G, D], the highest, likewise.
        free: bool[G, D], whether a coefficient is searched.
        sizes: int64[G], elements of a group.
        layers: [G], index of a group's transformer layer; None outside the layers.
        kinds: [G], what a group is: a layer, attention, mlp, norm, embedding, ...
    """

    def __init__(
        self,
        *,
        start: Tensor,
        lower: Tensor,
        upper: Tensor,
        free: Tensor,
        sizes: Tensor,
        layers: tuple[int | None, ...],
        kinds: tuple[str, ...],
        norms: Measured,
        cosines: Measured,
    ) -> None:
        """Hold what is given.

        Args:
            start: See the attributes, as for all but the last two.
            lower: fp64[G, D].
            upper: fp64[G, D].
            free: bool[G, D].
            sizes: int64[G].
            layers: G indices.
            kinds: G words.
            norms: See the property; or what measures them, which is called once, when a term asks.
            cosines: Likewise.
        """
        self.start = start
        self.lower = lower
        self.upper = upper
        self.free = free
        self.sizes = sizes
        self.layers = layers
        self.kinds = kinds
        self._norms = norms
        self._cosines = cosines

    @cached_property
    def norms(self) -> Tensor:
        """fp64[G, D], the Frobenius norm of each direction's delta in each group."""
        return self._norms if isinstance(self._norms, Tensor) else self._norms()

    @cached_property
    def cosines(self) -> Tensor:
        """fp64[G, D, D], the cosine between directions' deltas in each group; 0 where one of them is zero."""
        return self._cosines if isinstance(self._cosines, Tensor) else self._cosines()
