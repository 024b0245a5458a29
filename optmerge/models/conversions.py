"""How a checkpoint map is made: transformers' own renamings and conversions, followed by names and shapes.

transformers renames weights on load and converts some of them (Mixtral's experts become one tensor). It is asked for
its conversions, and they are followed symbolically (see `tracing`), so that a map costs no weights.

    layout = checkpoint_map(model_on_meta, checkpoint)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optmerge.errors import ModelError
from optmerge.models.mapping import CheckpointMap, Piece
from optmerge.models.tracing import Block, Traced, UntraceableError, trace_source

if TYPE_CHECKING:
    from optmerge.models.checkpoint import Checkpoint


def checkpoint_map(model: nn.Module, checkpoint: Checkpoint) -> CheckpointMap:
    """The map between a checkpoint and a transformers model, which may be (and usually is) on the meta device.

    Args:
        model: A ``PreTrainedModel``. A bare body's checkpoint fits a class with a head, and the other way round.
        checkpoint: Only names and shapes of its tensors are looked at.

    Raises:
        ModelError: If the checkpoint is quantized, or transformers converts it in a way that cannot be followed.
    """
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise ModelError(
            f"The checkpoint {checkpoint.reference} is quantized; merging needs plain floating-point weights. "
            "Use the model it was quantized from."
        )
    canonical = _canonical_names(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    disk_shapes = {name: tuple(info.shape) for name, info in checkpoint.tensors.items()}

    pieces: list[Piece] = []
    buffers: dict[str, Piece] = {}
    duplicates: dict[str, str] = {}
    filled: set[str] = set()
    landed = _landings(model, checkpoint)
    for target in sorted(landed, key=lambda name: canonical.get(name) != name):  # canonical names before tied copies
        name = canonical.get(target, target)
        own = landed[target]
        if name not in shapes:
            if target in wanted and len(own) == 1:
                buffers[target] = own[0]
            continue
        if name in filled:
            duplicates.update({piece.disk: name for piece in own})
        filled.add(name)
        pieces.extend(Piece(piece.disk, name, piece.index, piece.view, piece.lengths) for piece in own)
    return CheckpointMap(
        pieces,
        disk_shapes=disk_shapes,
        shapes=shapes,
        buffers=buffers,
        duplicates=duplicates,
        reference=checkpoint.reference,
    )


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter -> the first name of that parameter; tied ones have several."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _landings(model: nn.Module, checkpoint: Checkpoint) -> dict[str, list[Piece]]:
    """State-dict name -> the pieces that fill it, as transformers' own loading would fill it.

    Follows ``transformers.core_model_loading.convert_and_load_state_dict_in_model`` name by name.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")

    landed: dict[str, list[Piece]] = {}
    conversions: dict[str, tuple[Any, list[str]]] = {}
    for disk in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(disk, renamings, converters, prefix, state)
        if target not in state and disk in state:
            target, pattern = rename_source_key(disk, [], [], prefix, state)
        if target not in state:
            continue
        shape = tuple(checkpoint.tensors[disk].shape)
        if pattern is None:
            landed.setdefault(target, [Piece(disk, target, (), None, shape)])  # a second name for it is not read
        else:
            if target not in conversions:
                conversions[target] = (deepcopy(converter_of[pattern]), [])
            converter, sources = conversions[target]
            converter.add_tensor(target, disk, pattern, trace_source(disk, shape))
            sources.append(disk)
    for target, (converter, sources) in conversions.items():
        traced_by_name = _converted(model, converter, target, sources, checkpoint, state)
        for name, traced in traced_by_name.items():
            landed[name] = _pieces(name, traced, checkpoint)
    return landed


def _converted(
    model: nn.Module,
    converter: Any,
    target: str,
    sources: list[str],
    checkpoint: Checkpoint,
    state: Mapping[str, torch.Tensor],
) -> dict[str, Traced]:
    """What one of transformers' converters makes of traced disk tensors."""
    operations = ", ".join(type(operation).__name__ for operation in converter.operations)
    shown = ", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
    trouble = f"The checkpoint {checkpoint.reference} holds {target!r} as {shown}, which transformers converts on load "
    try:
        results = converter.convert(target, model=model, config=getattr(model, "config", None))
    except (UntraceableError, ValueError, TypeError, RuntimeError, AttributeError) as problem:
        raise ModelError(f"{trouble}by {operations}; optmerge cannot follow that ({problem}).") from problem
    traced = {name: value[0] if isinstance(value, list) else value for name, value in results.items()}
    lost = [name for name, value in traced.items() if name not in state or not isinstance(value, Traced)]
    landed = sum(value.numel() for name, value in traced.items() if name not in lost)
    held = sum(math.prod(checkpoint.tensors[disk].shape) for disk in sources)
    if lost or landed != held:
        raise ModelError(
            f"{trouble}by {operations}; {landed} of its {held} elements were followed into the model"
            + (f", and {', '.join(lost)} could not be." if lost else ".")
        )
    return traced


def _pieces(name: str, traced: Traced, checkpoint: Checkpoint) -> list[Piece]:
    """The blocks of a traced parameter as pieces."""
    shape = tuple(traced.shape)
    pieces = []
    for block in traced.blocks:
        lengths = block.lengths
        index = tuple(slice(start, start + length) for start, length in zip(block.start, lengths, strict=True))
        if lengths == shape:
            index = ()
        pieces.append(
            Piece(block.source, name, index, _view(block, tuple(checkpoint.tensors[block.source].shape)), lengths)
        )
    return pieces


def _view(block: Block, disk_shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int] | None:
    """Sizes, strides and offset of a block in its source; None when it is the whole source as it is."""
    flat = [factor for dimension in block.factors for factor in dimension]
    sizes, strides = tuple(size for size, _ in flat), tuple(stride for _, stride in flat)
    row_major = tuple(math.prod(sizes[position + 1 :]) for position in range(len(sizes)))
    if block.lengths == disk_shape and block.offset == 0 and strides == row_major:
        return None
    return sizes, strides, block.offset
