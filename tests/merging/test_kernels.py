"""The compiled kernels against torch, bit for bit, and what happens where nothing can be compiled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.errors import ConfigError, RunError
from optmerge.merging import jobs, kernels
from optmerge.merging.jobs import JobTable
from optmerge.merging.sources import Segment, Source
from optmerge.merging.writing import Workspace, contract, write_merge

TYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    kernels.compiled.cache_clear()
    yield
    kernels.compiled.cache_clear()


def with_torch() -> Workspace:
    workspace = Workspace(CPU, torch.float32)
    workspace.library = None
    return workspace


def compiled() -> Workspace:
    workspace = Workspace(CPU, torch.float32)
    assert workspace.library is not None, "these tests need a C compiler"
    return workspace


@st.composite
def cases(draw: st.DrawFn) -> tuple[Segment, list[float], torch.dtype]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    numel = draw(st.sampled_from([0, 1, 31, 32, 2047, 2048, 2049, 5000]))
    kinds = st.tuples(st.sampled_from(TYPES), st.booleans())
    # Long runs of one kind take another way through the kernel than mixtures do.
    sources = draw(
        st.lists(kinds, max_size=9) | st.integers(0, 9).flatmap(lambda k: kinds.map(lambda kind: [kind] * k))
    )
    scale = 10.0 ** draw(st.integers(-6, 3))

    def tensor(dtype: torch.dtype) -> torch.Tensor:
        return (scale * torch.randn(numel, generator=generator)).to(dtype)

    segment = Segment((), tensor(draw(st.sampled_from(TYPES))), tuple(Source(tensor(d), a) for d, a in sources))
    numbers = st.sampled_from([0.0, 1.0, 1 / 3]) | st.floats(-2, 2)
    return segment, [draw(numbers) for _ in sources], draw(st.sampled_from(TYPES))


@given(cases())
@settings(deadline=None, max_examples=150)
def test_a_merge_has_torchs_bits(case: tuple[Segment, list[float], torch.dtype]) -> None:
    segment, coefficients, dtype = case
    ours, theirs = (torch.full(segment.base.shape, 7.0, dtype=dtype) for _ in range(2))
    write_merge(ours, segment, coefficients, compiled())
    write_merge(theirs, segment, coefficients, with_torch())
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@given(cases())
@settings(deadline=None, max_examples=100)
def test_a_contraction_is_the_scalar_product(case: tuple[Segment, list[float], torch.dtype]) -> None:
    segment, _, dtype = case
    gradient = torch.linspace(-1, 1, segment.base.numel()).to(dtype)
    columns = list(range(len(segment.sources)))
    found = torch.zeros(len(columns), dtype=torch.float64)
    contract(gradient, segment, columns, found, compiled())
    for column, source in enumerate(segment.sources):
        assert isinstance(source, Source)
        delta = source.tensor.float() - segment.base.float() if source.absolute else source.tensor.float()
        products = gradient.double() * delta.double()
        assert abs(found[column] - products.sum()) <= 1e-6 * products.abs().sum() + 1e-300


@pytest.mark.parametrize("base", TYPES)
@pytest.mark.parametrize("tuned", TYPES)
@pytest.mark.parametrize("numel", [0, 1, 31, 512, 513, 2049])
def test_a_difference_has_torchs_bits(tuned: torch.dtype, base: torch.dtype, numel: int) -> None:
    library = compiled().library
    assert library is not None
    specials = torch.tensor([0.0, -0.0, torch.inf, torch.nan, 6e4, 1e-8])
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.cat([torch.randn(numel, generator=generator), specials]).to(dtype) for dtype in (tuned, base))
    b = b.roll(3)
    out = torch.empty(len(a))
    assert library.subtract(out, a, b)
    torch.testing.assert_close(out, a.float() - b.float(), rtol=0, atol=0, equal_nan=True)


def test_what_the_kernel_cannot_read_is_left_to_torch() -> None:
    library = compiled().library
    assert library is not None
    out = torch.zeros(4, 4)
    assert not library.subtract(out, torch.ones(4, 4).double(), torch.ones(4, 4))
    assert not library.subtract(out, torch.ones(4, 4), torch.arange(16.0).view(4, 4).mT)
    assert not out.any()


@pytest.mark.parametrize("dtype", TYPES)
def test_special_values_are_rounded_as_torch_rounds_them(dtype: torch.dtype) -> None:
    values = torch.tensor(
        [0.0, -0.0, 1e-45, 6e-8, 6e-5, 65504.0, 65520.0, 3.3895e38, 1e39, -1e39, torch.nan, 1.00390625]
    )
    segment = Segment((), torch.zeros(len(values)), (Source(values, absolute=False),))
    ours, theirs = torch.empty(len(values), dtype=dtype), torch.empty(len(values), dtype=dtype)
    write_merge(ours, segment, [1.0], compiled())
    write_merge(theirs, segment, [1.0], with_torch())
    assert torch.equal(ours.nan_to_num(nan=-7), theirs.nan_to_num(nan=-7))
    assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PIECE", 1000)
    generator = torch.Generator().manual_seed(3)
    base, gradient, *experts = (torch.randn(12_345, generator=generator) for _ in range(5))
    segment = Segment((), base, tuple(Source(expert, absolute=True) for expert in experts))
    results = []
    for count in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        out, sums = torch.empty_like(base), torch.zeros(3, dtype=torch.float64)
        write_merge(out, segment, [0.3, 0.4, 0.5], compiled())
        contract(gradient, segment, [0, 1, 2], sums, compiled())
        results.append((out, sums))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_helpers_are_waited_for_when_the_caller_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiled().library
    assert library is not None
    caller, ended = threading.current_thread(), []

    def work(*arguments: object) -> None:
        if threading.current_thread() is caller:
            raise KeyboardInterrupt
        time.sleep(0.2)
        ended.append(arguments)

    monkeypatch.setattr(library, "_library", SimpleNamespace(merge=work))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(KeyboardInterrupt):
        library.merge(np.zeros(3, dtype=kernels.JOB))
    assert len(ended) == 2  # the jobs' memory is given back now


def test_a_table_runs_only_the_entries_that_are_chosen() -> None:
    library = compiled().library
    assert library is not None
    base, expert = torch.zeros(10), torch.ones(10)
    outs = [torch.full((10,), 9.0) for _ in range(3)]
    table = JobTable([(out, base, [Source(expert, absolute=True)]) for out in outs])
    table.set_coefficients([0.25, 0.5, 0.75])
    library.merge(table.select(np.array([True, False, True])))
    assert [float(out[0]) for out in outs] == [0.25, 9.0, 0.75]


def test_without_a_compiler_torch_does_the_work_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level("WARNING"):
        assert kernels.kind(CPU) == "torch"
    assert "no-such-compiler" in caplog.text
    assert "install gcc or clang" in caplog.text
    kernels.compiled.cache_clear()
    monkeypatch.setenv("OPTMERGE_KERNELS", "compiled")
    with pytest.raises(RunError, match="no-such-compiler"):
        kernels.compiled()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'kernels.c: nonsense' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPTMERGE_KERNELS", "compiled")
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(RunError, match="nonsense"):
        kernels.compiled()
    assert not list((tmp_path / "cache" / "kernels").glob("*.so"))


def test_the_environment_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_KERNELS", "torch")
    assert kernels.kind(CPU) == "torch"
    kernels.compiled.cache_clear()
    monkeypatch.setenv("OPTMERGE_KERNELS", "fast")
    with pytest.raises(ConfigError, match="auto, torch or compiled"):
        kernels.compiled()


def test_the_compiler_may_be_a_command_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path))
    monkeypatch.setenv("OPTMERGE_KERNELS", "compiled")
    monkeypatch.setenv("CC", "env -u CPATH cc")
    assert kernels.kind(CPU) == "compiled"


def test_another_command_for_the_compiler_builds_another_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_compile", lambda compiler, to: to.write_text(" ".join(compiler)))
    monkeypatch.setattr(kernels, "Library", Path.read_text)
    found = []
    for command in ("cc", "cc -O1", "cc"):
        kernels.compiled.cache_clear()
        monkeypatch.setenv("CC", command)
        found.append(kernels.compiled())
    assert str(found[1]).endswith("cc -O1")
    assert found[0] == found[2] != found[1]
