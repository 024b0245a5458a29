"""Traced tensors agree, element by element, with the real functions on tensors of indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Conv3dToLinear,
    Interleave,
    LinearToConv3d,
    MergeModulelist,
    PermuteForRope,
    SplitModulelist,
    Transpose,
)

from optmerge.models.tracing import Traced, UntraceableError, trace_source


def replay(traced: Traced, sources: dict[str, torch.Tensor]) -> torch.Tensor:
    """The values that a traced tensor stands for."""
    out = torch.full(tuple(traced.shape), -1)
    for block in traced.blocks:
        flat = [factor for dimension in block.factors for factor in dimension]
        view = sources[block.source].as_strided([n for n, _ in flat], [s for _, s in flat], block.offset)
        box = tuple(slice(start, start + n) for start, n in zip(block.start, block.lengths, strict=True))
        out[box] = view.reshape(block.lengths)
    return out


SHAPES = {"a": (4, 6), "b": (4, 6), "c": (12, 2, 3)}
SOURCES = {
    name: 1000 * index + torch.arange(torch.Size(shape).numel()).reshape(shape)
    for index, (name, shape) in enumerate(SHAPES.items())
}

FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "cat": lambda a, b, c: torch.cat([a, b, a], dim=1),
    "stack": lambda a, b, c: torch.stack([a, b], dim=1),
    "stack-then-cat": lambda a, b, c: torch.cat([torch.stack([a, b]), torch.stack([b, a])], dim=1),
    "transpose": lambda a, b, c: c.transpose(0, 2).contiguous(),
    "permute": lambda a, b, c: c.permute(2, 0, 1),
    "chunk": lambda a, b, c: torch.chunk(c, 5, dim=0)[1],
    "split": lambda a, b, c: torch.split(c, [5, 7])[1],
    "interleave": lambda a, b, c: c.reshape(6, 2, 2, 3).transpose(0, 1).reshape(12, 2, 3),
    "cut-interleaved": lambda a, b, c: c.reshape(6, 2, 2, 3).transpose(0, 1).reshape(12, 6).chunk(2)[1],
    "merge-dims": lambda a, b, c: c.reshape(24, 3).t(),
    "view-minus-one": lambda a, b, c: c.view(3, -1, 6)[1, 2:],
    "flatten-transposed": lambda a, b, c: a.transpose(0, 1).flatten(),
    "cat-of-transposed": lambda a, b, c: torch.cat([a.transpose(0, 1), b.transpose(0, 1)]).unbind(1)[3],
    "squeeze": lambda a, b, c: a.unsqueeze(1).squeeze(1).narrow(1, 2, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_agrees_with_real(name: str) -> None:
    real = FUNCTIONS[name](*SOURCES.values())
    traced = FUNCTIONS[name](*(trace_source(source, shape) for source, shape in SHAPES.items()))
    assert isinstance(traced, Traced)
    assert torch.equal(replay(traced, SOURCES), real)


class Config:
    num_attention_heads = 2


OPERATIONS: dict[str, tuple[Any, list[tuple[int, ...]], list[str]]] = {
    "Chunk": (Chunk(dim=0), [(12, 3)], ["x", "y", "z"]),
    "Concatenate": (Concatenate(dim=0), [(4, 3), (2, 3)], ["x"]),
    "Interleave": (Interleave(dim=1), [(3, 8)], ["x"]),
    "Interleave-inverse": (Interleave(dim=0, inverse=True), [(8, 3)], ["x"]),
    "MergeModulelist": (MergeModulelist(dim=0), [(4, 3)], ["x"]),
    "SplitModulelist": (SplitModulelist(dim=0), [(4, 3, 2)], ["x.*"]),
    "Transpose": (Transpose(1, 2), [(2, 3, 4)], ["x"]),
    "Conv3dToLinear": (Conv3dToLinear(2, (1, 2, 2)), [(3, 2, 1, 2, 2)], ["x"]),
    "LinearToConv3d": (LinearToConv3d(2, (1, 2, 2)), [(3, 8)], ["x"]),
    "PermuteForRope": (PermuteForRope(), [(16, 3)], ["x"]),
    "PermuteForRope-inverse-bias": (PermuteForRope(inverse=True), [(16,)], ["x"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_conversion_operations_of_transformers_are_followed(name: str) -> None:
    operation, shapes, targets = OPERATIONS[name]
    patterns = [f"s{index}" for index in range(len(shapes))]
    real = {
        pattern: 1000 * index + torch.arange(torch.Size(shape).numel()).reshape(shape)
        for index, (pattern, shape) in enumerate(zip(patterns, shapes, strict=True))
    }

    def convert(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        lists = {pattern: [tensor] for pattern, tensor in tensors.items()}
        results = operation.convert(lists, source_patterns=patterns, target_patterns=targets, config=Config())
        return {target: value[0] if isinstance(value, list) else value for target, value in results.items()}

    expected = convert(dict(real))
    traced = convert({pattern: trace_source(pattern, tuple(value.shape)) for pattern, value in real.items()})
    assert list(traced) == list(expected)
    for target, value in expected.items():
        assert torch.equal(replay(traced[target], real), value)


def test_arithmetic_is_refused_by_name() -> None:
    with pytest.raises(UntraceableError, match="'add'"):
        trace_source("a", (2, 3)) + 1


def test_a_cut_through_an_interleaved_dimension_is_refused() -> None:
    mixed = trace_source("a", (4, 6)).reshape(2, 2, 6).transpose(0, 1).reshape(4, 6)
    with pytest.raises(UntraceableError, match="interleaved"):
        mixed.narrow(0, 1, 2)


def test_a_reshape_across_several_tensors_is_refused() -> None:
    both = torch.cat([trace_source("a", (4, 6)), trace_source("b", (4, 6))])
    with pytest.raises(UntraceableError, match="several tensors"):
        both.reshape(48)
