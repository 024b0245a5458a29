"""``custom``: a method of the user's own, a class in a Python file that a search file or a recipe names.

    class Doubled(PartsMethod):
        sees = "entries"

        def parts(self, vectors, kind):
            return [2 * vector for vector in vectors]

A `PartsMethod` says what each expert contributes, so that every expert can have coefficients of its own; a
`WholeMethod` says what all of them give together. docs/own-method.md shows one whole.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch

from optmerge.config.methods import METHOD_CONFIGS, Embeddings, Others, Searched
from optmerge.config.methods.own import OWN, CustomMethodConfig, title
from optmerge.config.methods_page import MethodRow
from optmerge.errors import ConfigError, OptmergeError, did_you_mean
from optmerge.merging.methods.base import Method, Models, TensorKind
from optmerge.merging.methods.building import Builders
from optmerge.merging.methods.elementwise import Elementwise, empty_delta
from optmerge.merging.methods.matrices import as_matrices
from optmerge.merging.methods.matrixwise import plain_factor, routed
from optmerge.merging.methods.reduce import WeightedSum
from optmerge.own_code import file_of, made, own_class, reason, require_attributes

Sees = Literal["entries", "tensor", "matrix"]
Made = list[torch.Tensor]


class OwnMethod:
    """What a `PartsMethod` and a `WholeMethod` say of themselves.

    The constructor's keyword arguments are the method's settings.

    Attributes:
        sees: What the class is given of a parameter. "entries": pieces of any shape, one after the other, for rules
            that treat every entry by itself; needs the least memory. "tensor": all of it, in its own shape. "matrix":
            matrices [out, in] only: a convolution as [out, in * ...], each matrix of a stack by itself, GPT-2's layers
            turned; what is no matrix gets the settings' ``others``, embeddings and heads ``embeddings``.
        tuned: Setting -> how it is searched, for those that can be.
    """

    sees: ClassVar[Sees] = "tensor"
    tuned: ClassVar[Mapping[str, Searched]] = {}


class PartsMethod(OwnMethod, ABC):
    """A method that is a sum of one part per expert."""

    @abstractmethod
    def parts(self, vectors: list[torch.Tensor], kind: TensorKind) -> list[torch.Tensor]:
        """What each expert contributes to a parameter, or to a piece of it.

        Args:
            vectors: Task vectors (expert - base) in the order of the search file, fp32, and fp64 where the base is.
                They may be changed in place.
            kind: What the whole parameter is for, how it is stored, and its shape.

        Returns:
            As many tensors of the same shape. At scale 1: the coefficients come afterwards.
        """


class WholeMethod(OwnMethod, ABC):
    """A method whose delta is no sum of parts: it has one coefficient for all experts together."""

    @abstractmethod
    def merged(self, vectors: list[torch.Tensor], kind: TensorKind) -> torch.Tensor:
        """What all experts give together; see `PartsMethod.parts`.

        Returns:
            One tensor of the shape of each of ``vectors``, at scale 1.
        """


def load_class(path: str) -> type[OwnMethod]:
    """The class that ``FILE.py:CLASS`` names, looked at.

    Args:
        path: Absolute, or relative to the working directory.

    Raises:
        ConfigError: The file or the class is missing, cannot be run, or says something of itself that cannot be; or its
            name is taken.
    """
    found: type[OwnMethod] = own_class(path, OWN, (PartsMethod, WholeMethod))
    kind = "PartsMethod" if issubclass(found, PartsMethod) else "WholeMethod"
    require_attributes(found, path, kind, {"sees": str, "tuned": dict})
    if found.sees not in get_args(Sees):
        raise ConfigError(
            f"{path} has sees = {found.sees!r}; expected one of {', '.join(get_args(Sees))}."
            f"{did_you_mean(found.sees, get_args(Sees))}"
        )
    settings = list(inspect.signature(found).parameters)
    for name, how in found.tuned.items():
        if name not in settings or not isinstance(how, Searched):
            raise ConfigError(
                f"{path} has tuned[{name!r}] = {how!r}; expected Searched(LOW, HIGH) for a setting, which are "
                f"{', '.join(settings) or 'none'}.{did_you_mean(str(name), settings)}"
            )
    if path.rpartition(":")[2] in (*METHOD_CONFIGS, "spectral", "experts", "base"):
        raise ConfigError(f"{path} is called as something of optmerge is; give the class a name of its own.")
    return found


def load_method(config: CustomMethodConfig) -> OwnMethod:
    """The object that a search file describes.

    Raises:
        ConfigError: See `load_class`; its settings are wrong, or the recipe's file was another one.
    """
    found = load_class(config.path)
    if config.sha256 is not None and config.sha256 != (now := config.content):
        raise ConfigError(
            f"{config.path} is not the file that the recipe was made with: its hash is {now[:12]}..., the recipe says "
            f"{config.sha256[:12]}.... Put the original back, or search again."
        )
    loaded: OwnMethod = made(config.path, found, config.settings)
    return loaded


def own_row(path: str) -> MethodRow:
    """What a user's method says of itself, beside what those of optmerge do (`optmerge ls methods`).

    Raises:
        ConfigError: See `load_class`.
    """
    found = load_class(path)
    return MethodRow(
        name=path.rpartition(":")[2],
        what=(found.__doc__ or "").partition("\n")[0],
        needs=("weights",),
        cost="computed once before a search",
        settings={
            name: None if one.default is inspect.Parameter.empty else one.default
            for name, one in inspect.signature(found).parameters.items()
        },
        searched=dict(found.tuned),
        searchable="parts" if issubclass(found, PartsMethod) else "whole",
        scale=1.0,
        experts=(1, None),
        mergekit=None,
        paper=str(getattr(found, "paper", CustomMethodConfig.facts.paper)),
    )


class Own(Method):
    """A user's method as one of optmerge's. A parameter that no expert changed keeps its value, unasked.

    Args:
        own: What the user wrote.
        name: What messages call it.
        experts: How many there are.
        others: What vectors get, where the class sees matrices.
        embeddings: What embeddings and heads get then.
    """

    def __init__(self, own: OwnMethod, name: str, experts: int, *, others: Others, embeddings: Embeddings) -> None:
        super().__init__((1.0,) * experts)
        self.own = own
        self.name = name
        self.linear = isinstance(own, PartsMethod)
        self.others = others
        self.embeddings = embeddings
        self._task_vectors = Elementwise(self.weights)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        found = self._made(models, name)
        if not self.linear:
            return found[0]
        total = torch.empty_like(found[0])  # of its own: a user may give one tensor for two experts
        WeightedSum(self.weights)(found, total)
        return total

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`."""
        return self._made(models, name) if self.linear else super().expert_deltas(models, name)

    def _made(self, models: Models, name: str) -> Made:
        """The parts of a parameter, or the one delta."""
        kind = models.kind(name)
        if self.own.sees == "entries":
            return self._by_pieces(models, name, kind)
        rule: Embeddings = "matrix"
        if self.own.sees == "matrix":
            rule = routed(kind, others=self.others, embeddings=self.embeddings)
        vectors = self._task_vectors.expert_deltas(models, name)
        if not vectors[0].numel():
            return self._as_many(vectors)
        if rule != "matrix":
            factor = plain_factor(rule, len(vectors))
            return self._as_many([vector.mul_(factor) for vector in vectors])
        if self.own.sees == "tensor":
            return self._asked(vectors, name, kind)
        stored = [as_matrices(vector, kind) for vector in vectors]
        turned = [matrix.mT if kind.input_first else matrix for matrix in stored]
        if kind.structure != "stack":
            results = self._asked([matrix.contiguous() for matrix in turned], name, kind)
        else:
            layers = [self._asked([m[i].contiguous() for m in turned], name, kind) for i in range(len(turned[0]))]
            results = [torch.stack(matrices) for matrices in zip(*layers, strict=True)]
        back = [result.mT if kind.input_first else result for result in results]
        return [result.reshape(kind.shape).contiguous() for result in back]

    def _by_pieces(self, models: Models, name: str, kind: TensorKind) -> Made:
        vectors = self._task_vectors.vectors(models)
        targets = [empty_delta(vectors, name)[0] for _ in range(len(self.weights) if self.linear else 1)]
        streams = [vectors.chunks(expert, name) for expert in models.experts]
        for chunks in zip(*streams, strict=True):
            pieces = self._asked([chunk.values for chunk in chunks], name, kind)
            for target, piece in zip(targets, pieces, strict=True):
                target[chunks[0].box] = piece
        return targets

    def _as_many(self, vectors: Made) -> Made:
        """A plain rule's vectors, added up where the method gives one delta."""
        if not self.linear:
            WeightedSum(self.weights)(vectors, vectors[0])
        return vectors if self.linear else vectors[:1]

    def _asked(self, vectors: Made, name: str, kind: TensorKind) -> Made:
        """What the user's class makes of some task vectors, looked at."""
        if not any(torch.count_nonzero(vector) for vector in vectors):
            return self._as_many(vectors)
        shape, dtype = vectors[0].shape, vectors[0].dtype
        try:
            results = self._call()(vectors, kind)
        except OptmergeError:
            raise
        except Exception as problem:  # whatever somebody else's code raises
            raise ConfigError(
                f"The custom method {self.name} cannot be computed for {name}: {reason(problem, file_of(self.own))}."
            ) from problem
        wanted = len(vectors) if self.linear else 1
        if not isinstance(results, list) or len(results) != wanted or not all(_fits(one, shape) for one in results):
            raise ConfigError(
                f"The custom method {self.name} gives {_what(results, linear=self.linear)} for {name}; expected "
                f"{f'a list of {wanted} float tensors' if self.linear else 'a float tensor'} {list(shape)}."
            )
        if not all(bool(torch.isfinite(one).all()) for one in results):
            raise ConfigError(
                f"The custom method {self.name} gives numbers for {name} that are not finite. Look for a division by "
                "zero or a root of what may be negative."
            )
        return [one.detach().to(dtype).contiguous() for one in results]

    def _call(self) -> Callable[[Made, TensorKind], object]:
        if isinstance(self.own, PartsMethod):
            return self.own.parts
        assert isinstance(self.own, WholeMethod), "a class of another kind is not loaded"
        own = self.own
        return lambda vectors, kind: [own.merged(vectors, kind)]


def _fits(result: object, shape: torch.Size) -> bool:
    return isinstance(result, torch.Tensor) and result.shape == shape and result.is_floating_point()


def _what(results: object, *, linear: bool) -> str:
    """What a user's class gave, in words."""
    if not linear:
        assert isinstance(results, list)
        results = results[0]
    if isinstance(results, list | tuple):
        kind = type(results).__name__
        return f"a {kind} of {len(results)}{f' ({_what(results[0], linear=True)}, ...)' if results else ''}"
    if isinstance(results, torch.Tensor):
        return f"a tensor {list(results.shape)} of {str(results.dtype).removeprefix('torch.')}"
    return f"a {type(results).__name__}"


def _build(config: CustomMethodConfig, experts: Sequence[str]) -> Own:
    own = load_method(config)
    return Own(own, title(config), len(experts), others=config.others, embeddings=config.embeddings)


OWN_METHOD: Builders = {CustomMethodConfig: _build}
