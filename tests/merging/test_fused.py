"""The CUDA kernels against torch, bit for bit: in Triton's interpreter, compiled but not run, and on a real device.

Where there is no Triton, only the choice between them and torch is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.errors import RunError
from optmerge.merging import fused, kernels
from optmerge.merging.fused import CONTRACT_BLOCK, MERGE_BLOCK, MOST, TYPES, Fused
from optmerge.merging.sources import Segment, Source
from optmerge.merging.writing import Workspace, contract, write_merge

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EDGES = [0, 1, 15, *(block + d for block in (MERGE_BLOCK, CONTRACT_BLOCK) for d in (-1, 0, 1)), 2 * CONTRACT_BLOCK + 7]

Case = tuple[Segment, list[float], torch.dtype]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    numel = draw(st.sampled_from(EDGES))
    kinds = st.tuples(st.sampled_from(TYPES), st.booleans())
    sources = draw(
        st.lists(kinds, max_size=20) | st.integers(0, 20).flatmap(lambda k: kinds.map(lambda kind: [kind] * k))
    )
    scale = 10.0 ** draw(st.integers(-6, 3))

    def tensor(dtype: torch.dtype) -> torch.Tensor:
        return (scale * torch.randn(numel, generator=generator)).to(dtype)

    segment = Segment((), tensor(draw(st.sampled_from(TYPES))), tuple(Source(tensor(d), a) for d, a in sources))
    for value in draw(st.lists(st.sampled_from([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-42]), max_size=4)):
        places = [segment.base, *(source.tensor for source in segment.sources if isinstance(source, Source))]
        if numel:
            draw(st.sampled_from(places))[draw(st.integers(0, numel - 1))] = value
    numbers = st.sampled_from([0.0, 1.0, 1 / 3]) | st.floats(-2, 2)
    return segment, [draw(numbers) for _ in sources], draw(st.sampled_from(TYPES))


def moved(segment: Segment, device: torch.device) -> Segment:
    sources = tuple(Source(s.tensor.to(device), s.absolute) for s in segment.sources if isinstance(s, Source))
    return Segment(segment.index, segment.base.to(device), sources)


def workspace(device: torch.device, using: Fused | None) -> Workspace:
    made = Workspace(device, torch.float32)
    made.library, made.fused = None, using
    return made


def assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    nan = theirs.isnan()
    assert torch.equal(ours.isnan(), nan)
    ours, theirs = ours.masked_fill(nan, 0), theirs.masked_fill(nan, 0)
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


def check_merge(case: Case, using: Fused) -> None:
    segment, coefficients, dtype = case
    segment = moved(segment, using.device)
    ours, theirs = (torch.full_like(segment.base, 7.0, dtype=dtype) for _ in range(2))
    write_merge(ours, segment, coefficients, workspace(using.device, using))
    write_merge(theirs, segment, coefficients, workspace(using.device, None))
    assert_same_bits(ours, theirs)


def check_contraction(case: Case, using: Fused) -> None:
    segment, _, dtype = case
    segment = moved(segment, using.device)
    gradient = torch.linspace(-1, 1, segment.base.numel(), device=using.device).to(dtype)
    columns = list(reversed(range(len(segment.sources))))
    first, second = (torch.full((len(columns) + 1,), 0.5, dtype=torch.float64, device=using.device) for _ in range(2))
    for found in (first, second):
        contract(gradient, segment, columns, found, workspace(using.device, using))
    assert_same_bits(first, second)
    assert first[-1] == 0.5
    for column, source in enumerate(segment.sources):
        assert isinstance(source, Source)
        delta = source.tensor.float() - segment.base.float() if source.absolute else source.tensor.float()
        products = gradient.double() * delta.double()
        if products.isfinite().all():
            assert abs(first[column] - 0.5 - products.sum()) <= 1e-5 * products.abs().sum() + 1e-12
        else:
            assert not first[column].isfinite()


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Fused]:
    """The kernels on the CPU.

    Triton's interpreter cuts bf16 off and has its own idea of subnormals; devices round to nearest even, as torch does.
    """
    assert os.environ.get("TRITON_INTERPRET") == "1", "use make test-triton"
    from triton.runtime import interpreter

    def convert(values: np.ndarray, source: object, target: object, mode: object) -> np.ndarray:
        if str(target) == "bf16":
            return torch.from_numpy(values.view(np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float().numpy()

    with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore", over="ignore"):
        patch.setattr(interpreter, "_convert_float", convert)
        yield Fused(CPU)


@pytest.mark.triton
@given(case=cases())
@settings(max_examples=150)
def test_a_merge_has_torchs_bits(interpreted: Fused, case: Case) -> None:
    check_merge(case, interpreted)


@pytest.mark.triton
@given(case=cases())
@settings(max_examples=100)
def test_a_contraction_is_the_scalar_product_and_always_the_same(interpreted: Fused, case: Case) -> None:
    check_contraction(case, interpreted)


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("check", [check_merge, check_contraction])
def test_the_same_on_a_real_device(check: object) -> None:
    using = Fused(CUDA)
    assert callable(check)

    @given(cases())
    @settings(max_examples=150)
    def run(case: Case) -> None:
        check(case, using)

    run()


@pytest.mark.triton
def test_only_whole_segments_of_the_device_in_its_types_are_taken(
    interpreted: Fused, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[int] = []
    merge = Fused.merge

    def counted(
        self: Fused, out: torch.Tensor, base: torch.Tensor, sources: list[Source], numbers: list[float]
    ) -> None:
        launches.append(len(sources))
        merge(self, out, base, sources, numbers)

    monkeypatch.setattr(Fused, "merge", counted)

    def launched(base: torch.Tensor, values: list[torch.Tensor], coefficients: list[float]) -> list[int]:
        launches.clear()
        segment = Segment((), base, tuple(Source(tensor, absolute=True) for tensor in values))
        ours, theirs = torch.empty_like(base), torch.empty_like(base)
        write_merge(ours, segment, coefficients, workspace(CPU, interpreted))
        write_merge(theirs, segment, coefficients, workspace(CPU, None))
        assert_same_bits(ours, theirs)
        return list(launches)

    generator = torch.Generator().manual_seed(5)
    base, *values = torch.randn(MOST + 2, 6, 4, generator=generator).unbind()
    assert launched(base, values[:3], [0.5, 0.25, 0.125]) == [3]
    assert launched(base, values[:3], [0.5, 0.0, 0.125]) == [2], "a zero coefficient is not passed: 0 * inf is no 0"
    assert launched(base, values[:MOST], [0.1] * MOST) == [MOST]
    assert launched(base, values, [0.1] * (MOST + 1)) == []
    assert launched(base, [values[0].double()], [0.5]) == []
    assert launched(base, [values[0].T.contiguous().T], [0.5]) == []
    assert launched(base[:0], [values[0][:0]], [0.5]) == [1]


@pytest.mark.triton
@pytest.mark.parametrize(("name", "told"), [("merge", "differ from those that torch gives"), ("contract", "off by")])
def test_the_self_check_finds_a_wrong_kernel(
    interpreted: Fused, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    from optmerge.merging import fused_kernels

    right = getattr(fused_kernels, name)

    class Wrong:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            def launch(
                out: torch.Tensor, base: torch.Tensor, sources: object, rest: object, *more: object, **o: object
            ) -> None:
                right[grid](out, base, sources, rest, *more, **o)
                result = rest if isinstance(rest, torch.Tensor) else out
                result.view(-1)[-1:].view(torch.uint8)[-1:] ^= 1  # one bit of the last value

            return launch

    monkeypatch.setattr(fused_kernels, name, Wrong())
    with pytest.raises(ArithmeticError, match=told):
        fused.self_check(interpreted)


COMPILE = """
import sys
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from optmerge.merging import fused, fused_kernels
from optmerge.merging.sources import Source


class Device:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", int(sys.argv[1]), 32)


class CompileOnly:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *tensors, **options: print(self.kernel.warmup(*tensors, grid=grid, **options).asm["ptx"])


driver.set_active(Device())
fused.self_check = lambda kernels: None
kernels = fused.Fused(torch.device("cpu"))
names = ("merge", "contract")
kernels._kernels = SimpleNamespace(**{name: CompileOnly(getattr(fused_kernels, name)) for name in names})
for count in (1, 3, fused.MOST):
    for out in fused.TYPES:
        tensor = torch.zeros(64, dtype=out)
        sources = [Source(torch.zeros(64, dtype=fused.TYPES[k % 3]), absolute=True) for k in range(count)]
        kernels.merge(tensor, tensor, sources, [0.5] * count)
        kernels.contract(tensor, tensor, sources, range(count), torch.zeros(count, dtype=torch.float64))
"""


@pytest.mark.triton
@pytest.mark.parametrize("capability", [75, 80, 90, 100])
def test_compiled_for_a_device_nothing_is_contracted_or_flushed_and_loads_are_wide(
    tmp_path: Path, capability: int
) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = set(done.stdout.split())
    floating = {name for name in names if ".f32" in name}
    assert any(name.startswith("mul.rn.f32") for name in floating)
    # Without a rounding mode ptxas may still contract.
    assert not {name for name in floating if name.startswith(("fma", "mad", "mul.f32", "add.f32", "sub.f32"))}
    assert not {name for name in floating if ".ftz" in name}
    loads = {name for name in names if name.startswith("ld.global")}
    assert loads
    assert all(".v4." in name or ".v2." in name for name in loads)


@pytest.fixture
def forgetful() -> Iterator[None]:
    kernels.fused.cache_clear()
    yield
    kernels.fused.cache_clear()


def failing(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    tried: list[torch.device] = []

    def fail(device: torch.device) -> Fused:
        tried.append(device)
        raise ArithmeticError("3 bytes of a merge of 9 sources differ")

    monkeypatch.setattr(kernels, "Fused", fail)
    return tried


@pytest.mark.usefixtures("forgetful")
def test_kernels_that_cannot_be_used_are_announced_once_and_torch_does_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OPTMERGE_KERNELS", raising=False)
    tried = failing(monkeypatch)
    with caplog.at_level("WARNING"):
        assert kernels.fused(CUDA) is None
        assert kernels.kind(CUDA) == "torch"
    assert tried == [CUDA]
    assert len(caplog.messages) == 1
    assert "on cuda (ArithmeticError: 3 bytes of a merge of 9 sources differ). Torch's operations are" in caplog.text


@pytest.mark.usefixtures("forgetful")
def test_kernels_that_are_demanded_and_cannot_be_used_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_KERNELS", "compiled")
    failing(monkeypatch)
    with pytest.raises(RunError, match=r"on cuda \(ArithmeticError: 3 bytes .* or set OPTMERGE_KERNELS=auto"):
        kernels.fused(CUDA)


@pytest.mark.usefixtures("forgetful")
def test_only_a_cuda_device_is_tried_and_only_where_kernels_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = failing(monkeypatch)
    monkeypatch.setenv("OPTMERGE_KERNELS", "compiled")
    assert kernels.kind(torch.device("mps")) == "torch"
    monkeypatch.setenv("OPTMERGE_KERNELS", "torch")
    assert kernels.kind(CUDA) == "torch"
    assert tried == []


@pytest.mark.usefixtures("forgetful")
def test_kernels_that_can_be_used_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTMERGE_KERNELS", raising=False)
    monkeypatch.setattr(kernels, "Fused", lambda device: device)
    assert kernels.kind(CUDA) == "triton"
