"""What an expert said about one split of its task: made once, kept small, looked up batch by batch.

    outputs = TeacherOutputs.collect(((batch, outputs) for ...), k=128)
    outputs.save(path)
    outputs = TeacherOutputs.load(path, device=device)
    teacher = outputs.batch(batch)           # rows in the order of the batch's predictions

Kept per row (an example, or a scored token): log-probabilities of the k likeliest classes and of all others together,
at temperature 1 and in fp32, and the likeliest class. With k >= C that is every class, in order. Of layers that a term
asks for, hidden states are kept at every place that the model attends to, in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from optmerge.atomic import atomic_path
from optmerge.calibration.batches import Batch
from optmerge.errors import RunError
from optmerge.objective.base import CHUNK, attended, scored_logits
from optmerge.objective.outputs import Outputs
from optmerge.objective.projection import projected
from optmerge.records import SplitName

_FORMAT = "optmerge teacher outputs 2"


@dataclass(frozen=True)
class Keep:
    """What is kept of an expert's outputs.

    Attributes:
        classes: How many of the likeliest classes; None is all.
        layers: Of which transformer layers hidden states are kept, on fit and select.
        project: Dimensions that they are projected to (`optmerge.objective.projection`); None keeps them as they are.
    """

    classes: int | None
    layers: tuple[int, ...] = ()
    project: int | None = None

    def layers_on(self, split: SplitName) -> tuple[int, ...]:
        """The layers on one split: none on report, whose metrics look at predictions only."""
        return () if split == "report" else self.layers

    def identity(self, split: SplitName) -> list[object]:
        """What tells outputs that are kept so from others, as data."""
        layers = self.layers_on(split)
        return [self.classes, layers, self.project if layers else None]

    def columns(self, classes: int) -> int:
        """Log-probabilities per row of a head of so many classes."""
        return classes if self.classes is None or self.classes >= classes else self.classes + 1

    def width(self, width: int) -> int:
        """Numbers per hidden state of a layer of so many."""
        return width if self.project is None else min(width, self.project)


@dataclass(frozen=True, eq=False)
class TeacherBatch:
    """An expert's predictions for the rows of one batch.

    Attributes:
        log_probs: fp32[N, C], or fp32[N, k + 1] where only some classes are kept: the last column is the log of the
            probability of all others together.
        indices: int64[N, k], which classes are kept; None for all, in order.
        choice: int64[N], the expert's likeliest class.
        hidden: Index of a layer -> [P, H], what it gave at the P places that the batch attends to (`base.attended`), in
            their order; any floating dtype. Only layers that a term asked for.
    """

    log_probs: Tensor
    indices: Tensor | None
    choice: Tensor
    hidden: Mapping[int, Tensor] = field(default_factory=dict)


def coarse_log_probs(logits: Tensor, kept: Tensor | None) -> Tensor:
    """Log-probabilities of the kept classes and of all others together.

    The others are summed as they are (their logits' logsumexp), because 1 minus the kept ones' sum would lose its
    digits, and its gradient, as soon as the kept classes hold nearly everything.

    Args:
        logits: [N, C].
        kept: int64[N, k] with k < C; None keeps all.

    Returns:
        [N, C], or [N, k + 1].
    """
    if kept is None:
        return logits.log_softmax(-1)
    total = logits.logsumexp(-1, keepdim=True)
    # Where no other class is possible, the slope of the logsumexp of nothing but -inf would be NaN.
    least = torch.finfo(logits.dtype).min / 2
    others = logits.scatter(-1, kept, least).clamp(min=least).logsumexp(-1, keepdim=True)
    others = others.masked_fill(others <= least / 2, -float("inf"))
    return torch.cat([logits.gather(-1, kept), others], -1) - total


@dataclass(frozen=True, eq=False)
class Spans:
    """Where every example's rows are in a tensor that holds all examples' rows one behind the other; on the CPU.

    Attributes:
        starts: int64[n].
        lengths: int64[n].
    """

    starts: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, order: Tensor, counts: Sequence[Tensor]) -> Spans:
        """The spans of n examples.

        Args:
            order: int64[n], the examples in the order of their rows.
            counts: Together int64[n]: how many rows each of them has.
        """
        count = torch.cat(list(counts)) if counts else order
        starts, lengths = torch.empty_like(order), torch.empty_like(order)
        starts[order], lengths[order] = count.cumsum(0) - count, count
        return cls(starts, lengths)

    def locate(self, positions: Tensor) -> slice | Tensor:
        """The rows of some examples, in their order: a slice where they stand one behind the other, else int64[N]."""
        starts, lengths = self.starts[positions], self.lengths[positions]
        ends = starts + lengths
        if len(starts) and torch.equal(starts[1:], ends[:-1]):
            return slice(int(starts[0]), int(ends[-1]))
        first = lengths.cumsum(0) - lengths  # where each example's rows begin in the batch
        within = torch.arange(int(lengths.sum())) - first.repeat_interleave(lengths)
        return starts.repeat_interleave(lengths) + within


class TeacherOutputs:
    """An expert's predictions for all n examples of a split.

    Attributes:
        classes: Size of the head or vocabulary.
    """

    def __init__(
        self,
        log_probs: Tensor,
        indices: Tensor | None,
        choice: Tensor,
        spans: Spans,
        hidden: Mapping[int, tuple[Tensor, Spans]],
        *,
        classes: int,
    ) -> None:
        self.classes = classes
        self._log_probs, self._indices, self._choice = log_probs, indices, choice
        self._spans = spans  # of every example's rows
        self._hidden = dict(hidden)  # layer -> states [places, H] and every example's places among them

    @classmethod
    def collect(
        cls,
        outputs: Iterable[tuple[Batch, Outputs]],
        k: int | None,
        *,
        layers: Sequence[int] = (),
        project: int | None = None,
    ) -> TeacherOutputs:
        """Keep what is needed of an expert's outputs over a whole split.

        Args:
            outputs: Batches and what the expert says about them; together they hold every example once.
            k: Classes to keep; None or at least C keeps all.
            layers: Layers whose hidden states are kept; the outputs must have them.
            project: Dimensions that hidden states are projected to; None keeps them as they are.

        Raises:
            ValueError: An example is missing or comes twice.
        """
        pieces: list[tuple[Tensor, Tensor | None, Tensor]] = []
        positions: list[Tensor] = []
        counts: list[Tensor] = []
        states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        places: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        classes = 0
        for batch, said in outputs:
            classes = said.logits.shape[-1]
            positions.append(batch.positions)
            scored = batch.scored
            counts.append(torch.ones_like(batch.positions) if scored is None else scored.sum(1).cpu())
            rows = scored_logits(said.logits.detach(), batch)
            pieces += [_summary(chunk.float(), k) for chunk in torch.split(rows, max(1, CHUNK // classes))]
            for layer in layers:
                value = said.hidden[layer].detach()
                mask = attended(batch, value, decoder=layer in said.decoder)
                states[layer].append(projected(value[mask], project or value.shape[-1]).to(value.dtype))
                places[layer].append(mask.sum(1).cpu())
        order = torch.cat(positions) if positions else torch.empty(0, dtype=torch.int64)
        if not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError("teacher outputs must be collected over every example of a split, once each")
        log_probs = torch.cat([piece[0] for piece in pieces]) if pieces else torch.empty(0, 0)
        indices = [piece[1] for piece in pieces if piece[1] is not None]
        choice = torch.cat([piece[2] for piece in pieces]) if pieces else order.int()
        hidden = {layer: (torch.cat(found), Spans.of(order, places[layer])) for layer, found in states.items() if found}
        spans = Spans.of(order, counts)
        return cls(log_probs, torch.cat(indices) if indices else None, choice, spans, hidden, classes=classes)

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self._spans.starts)

    @property
    def nbytes(self) -> int:
        """Memory taken, in bytes."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def batch(self, batch: Batch) -> TeacherBatch:
        """The rows of a batch's examples, in its order, on the device where the outputs are.

        No synchronisation with the device. The batches that the outputs were collected from are views, others are
        gathered.
        """
        rows = self._spans.locate(batch.positions)
        hidden = {
            layer: _take(states, spans.locate(batch.positions)) for layer, (states, spans) in self._hidden.items()
        }
        return TeacherBatch(
            _take(self._log_probs, rows),
            None if self._indices is None else _take(self._indices, rows).long(),
            _take(self._choice, rows).long(),
            hidden,
        )

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that is kept, by the name that it has in a file."""
        tensors = {"log_probs": self._log_probs, "choice": self._choice}
        tensors |= {"starts": self._spans.starts, "lengths": self._spans.lengths}
        if self._indices is not None:
            tensors["indices"] = self._indices
        for layer, (states, spans) in self._hidden.items():
            tensors |= {f"hidden.{layer}": states, f"starts.{layer}": spans.starts, f"lengths.{layer}": spans.lengths}
        return tensors

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            RunError: The disk refuses.
        """
        with atomic_path(path) as temporary:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in self._tensors().items()},
                temporary,
                metadata={"format": _FORMAT, "classes": str(self.classes), "temperature": "1"},
            )

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu") -> TeacherOutputs:
        """Read what `save` wrote, onto ``device``.

        Raises:
            RunError: The file is damaged, or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                # Copies, because a mapped file that is cut short later would end the process.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as problem:
            raise RunError(
                f"The cached teacher outputs {path} cannot be read ({problem}). Delete the file; it is made again."
            ) from None
        if metadata.get("format") != _FORMAT:
            raise RunError(f"{path} does not hold teacher outputs of this version. Delete the file; it is made again.")
        indices = tensors.get("indices")
        layers = sorted(int(name.partition(".")[2]) for name in tensors if name.startswith("hidden."))
        return cls(
            tensors["log_probs"].to(device),
            None if indices is None else indices.to(device),
            tensors["choice"].to(device),
            Spans(tensors["starts"], tensors["lengths"]),
            {
                layer: (
                    tensors[f"hidden.{layer}"].to(device),
                    Spans(tensors[f"starts.{layer}"], tensors[f"lengths.{layer}"]),
                )
                for layer in layers
            },
            classes=int(metadata["classes"]),
        )


def _take(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows of a tensor: a view of neighbouring ones, else gathered without synchronising."""
    return (
        tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows.to(tensor.device, non_blocking=True))
    )


def _summary(logits: Tensor, k: int | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """What is kept of rows of logits: log-probabilities, which classes they are of, and the likeliest class."""
    choice = logits.argmax(-1).int()
    classes = logits.shape[-1]
    if k is None or k >= classes:
        return logits.log_softmax(-1), None, choice
    kept = logits.topk(k, -1).indices
    return coarse_log_probs(logits, kept), kept.to(torch.int16 if classes <= 1 << 15 else torch.int32), choice
