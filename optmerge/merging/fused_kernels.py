"""One segment's merge and contraction on a CUDA device, in Triton: each input is read once, the result written once.

Importing this module needs Triton, which comes with PyTorch's CUDA builds; `fused` is the only one that does, and only
for a CUDA device. Sources and coefficients are arguments of the launch, so that a candidate transfers nothing. A kernel
is compiled for every number of sources and every combination of types that comes up, once per machine.

    merge[(blocks,)](out, base, sources, coefficients, length, ABSOLUTE=0b11, BLOCK=1024, enable_fp_fusion=False)

A merge has torch's bits as long as no multiplication is fused with an addition: always launch with
``enable_fp_fusion=False``.
"""

import triton
import triton.language as tl


@triton.jit
def merge(out, base, sources, coefficients, length, ABSOLUTE: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """Out <- base + sum of coefficient * delta, in fp32 and in the order of the sources; one cast at the end.

    Args:
        out: [length], any of fp32, bf16, fp16; so are the others.
        base: [length].
        sources: Tuple of D >= 1 pointers, each [length].
        coefficients: Tuple of D numbers.
        length: Elements.
        ABSOLUTE: Bit k says that source k holds an expert's values, from which the base is subtracted.
        BLOCK: Elements of one program.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    theta = tl.load(base + at, mask=inside).to(tl.float32)
    total = tl.full([BLOCK], -0.0, tl.float32)  # -0 + x is x, also where x is -0
    for k in tl.static_range(len(sources)):
        delta = tl.load(sources[k] + at, mask=inside).to(tl.float32)
        if (ABSOLUTE >> k) & 1:
            delta = delta - theta
        total = total + delta * coefficients[k]
    tl.store(out + at, (total + theta).to(out.dtype.element_ty), mask=inside)


@triton.jit
def contract(gradient, base, sources, partials, length, ABSOLUTE: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """partials[k, program] <- <gradient, delta_k> over the program's block, in fp32.

    Args:
        gradient: [length], any of fp32, bf16, fp16; so are base and sources.
        base: [length].
        sources: Tuple of D >= 1 pointers, each [length].
        partials: fp32[D, programs].
        length: Elements.
        ABSOLUTE: As in `merge`.
        BLOCK: Elements of one program.
    """
    program = tl.program_id(0)
    at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    theta = tl.load(base + at, mask=inside, other=0.0).to(tl.float32)
    for k in tl.static_range(len(sources)):
        delta = tl.load(sources[k] + at, mask=inside, other=0.0).to(tl.float32)
        if (ABSOLUTE >> k) & 1:
            delta = delta - theta
        row = partials + tl.num_programs(0).to(tl.int64) * k
        tl.store(row + program, tl.sum(slope * delta, axis=0))
