"""What an expert said about one split of its task: made once, kept small, looked up batch by batch.

    outputs = TeacherOutputs.collect(((batch, outputs) for ...), Keep(128, samples=32))
    outputs.save(path)
    outputs = TeacherOutputs.load(path, device=device)
    teacher = outputs.batch(batch)           # rows in the order of the batch's predictions

Kept per row (an example, or a scored token): see `optmerge.objective.kept`, whose rows these are. Of layers that a term
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
from optmerge.objective.base import attended, scored_logits
from optmerge.objective.kept import Keep, Kept, concatenate, summarise, weyl
from optmerge.objective.outputs import Outputs
from optmerge.objective.projection import projected

_FORMAT = "optmerge teacher outputs 3"


@dataclass(frozen=True, eq=False)
class TeacherBatch(Kept):
    """An expert's predictions for the rows of one batch.

    Attributes:
        hidden: Index of a layer -> [P, H], what it gave at the P places that the batch attends to (`base.attended`), in
            their order; any floating dtype. Only layers that a term asked for.
    """

    hidden: Mapping[int, Tensor] = field(default_factory=dict)


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
        rows: Kept,
        spans: Spans,
        hidden: Mapping[int, tuple[Tensor, Spans]],
        *,
        classes: int,
    ) -> None:
        self.classes = classes
        self._rows, self._spans = rows, spans  # of every example
        self._hidden = dict(hidden)  # layer -> states [places, H] and every example's places among them

    @classmethod
    def collect(
        cls,
        outputs: Iterable[tuple[Batch, Outputs]],
        keep: Keep,
        *,
        layers: Sequence[int] | None = None,
    ) -> TeacherOutputs:
        """Keep what is needed of an expert's outputs over a whole split.

        Args:
            outputs: Batches and what the expert says about them; together they hold every example once.
            keep: What is kept.
            layers: Layers whose hidden states are kept; None is all that ``keep`` names. The outputs must have them.

        Raises:
            ValueError: An example is missing or comes twice.
        """
        layers = keep.layers if layers is None else layers
        pieces: list[Kept] = []
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
            pieces.append(summarise(rows, keep, _starts(batch.positions, counts[-1])))
            for layer in layers:
                value = said.hidden[layer].detach()
                mask = attended(batch, value, decoder=layer in said.decoder)
                states[layer].append(projected(value[mask], keep.project or value.shape[-1]).to(value.dtype))
                places[layer].append(mask.sum(1).cpu())
        order = torch.cat(positions) if positions else torch.empty(0, dtype=torch.int64)
        if not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError("teacher outputs must be collected over every example of a split, once each")
        kept = concatenate(pieces) if pieces else Kept(torch.empty(0, 0), None, order.int())
        hidden = {layer: (torch.cat(found), Spans.of(order, places[layer])) for layer, found in states.items() if found}
        return cls(kept, Spans.of(order, counts), hidden, classes=classes)

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
        kept = self._rows

        def classes(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else _take(tensor, rows).long()

        return TeacherBatch(
            _take(kept.log_probs, rows),
            classes(kept.indices),
            _take(kept.choice, rows).long(),
            classes(kept.drawn),
            None if kept.drawn_log_probs is None else _take(kept.drawn_log_probs, rows),
            {temperature: _take(values, rows) for temperature, values in kept.tempered.items()},
            hidden,
        )

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that is kept, by the name that it has in a file."""
        rows = self._rows
        tensors = {"log_probs": rows.log_probs, "choice": rows.choice}
        tensors |= {"starts": self._spans.starts, "lengths": self._spans.lengths}
        some = {"indices": rows.indices, "drawn": rows.drawn, "drawn_log_probs": rows.drawn_log_probs}
        tensors |= {name: tensor for name, tensor in some.items() if tensor is not None}
        tensors |= {f"tempered.{temperature!r}": values for temperature, values in rows.tempered.items()}
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
                metadata={"format": _FORMAT, "classes": str(self.classes)},
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
        here = {
            name: tensor.to(device) for name, tensor in tensors.items() if not name.startswith(("starts", "lengths"))
        }

        def numbered(prefix: str) -> dict[str, str]:
            return {name.removeprefix(prefix): name for name in here if name.startswith(prefix)}

        return cls(
            Kept(
                here["log_probs"],
                here.get("indices"),
                here["choice"],
                here.get("drawn"),
                here.get("drawn_log_probs"),
                {float(number): here[name] for number, name in numbered("tempered.").items()},
            ),
            Spans(tensors["starts"], tensors["lengths"]),
            {
                int(layer): (here[name], Spans(tensors[f"starts.{layer}"], tensors[f"lengths.{layer}"]))
                for layer, name in sorted(numbered("hidden.").items(), key=lambda pair: int(pair[0]))
            },
            classes=int(metadata["classes"]),
        )


def _take(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows of a tensor: a view of neighbouring ones, else gathered without synchronising."""
    return (
        tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows.to(tensor.device, non_blocking=True))
    )


def _starts(positions: Tensor, counts: Tensor) -> Tensor:
    """Where the draws of every row begin, for examples with so many rows each: fp64[N], on the CPU."""
    first = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum())) - first.repeat_interleave(counts)
    return weyl(positions.cpu().repeat_interleave(counts), within)
