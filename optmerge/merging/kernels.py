"""The compiled passes over weights: C for host memory, built once by the C compiler here; `fused` for CUDA.

`kernels.c` has those with a coefficient per tensor, `sliced_kernels.c` those with one per column or row, and
`drop_kernels.c` the random drops of merging methods.

They only make merging faster: where nothing can be compiled the same arithmetic is done by torch's own operations, with
the same bits for a merge, and the sums of a contraction in another order. Which of them is used is logged, shown by
``optmerge plan`` and written down in a run's manifest.

    library = compiled()                       # None: use torch
    table = JobTable([(out, base, sources)])   # see `jobs`
    table.set_coefficients([0.3, 0.5])
    library.merge(table.jobs)

The environment variable ``OPTMERGE_KERNELS`` chooses: ``auto`` (the default), ``torch``, or ``compiled``, which fails
where nothing can be compiled. ``CC`` names another compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from optmerge.atomic import atomic_path
from optmerge.errors import ConfigError, RunError
from optmerge.merging.fused import Fused
from optmerge.models.cache import cache_dir

log = logging.getLogger(__name__)

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the enum in kernels.c
PIECE = 1 << 18  # elements of one job: small enough to share out evenly, large enough to cost nothing to hand out
MOST = 1024  # sources of one job, as in kernels.c
LANES = 16  # running sums of magnitudes, as in drop_kernels.c
STRIP = 2048  # columns of one job that is contracted by columns, as in sliced_kernels.c
SOURCE = np.dtype([("data", "u8"), ("type", "i4"), ("absolute", "i4"), ("coefficient", "f8")], align=True)
JOB = np.dtype(
    [
        ("out", "u8"),
        ("base", "u8"),
        ("sources", "u8"),
        ("length", "i8"),
        ("out_type", "i4"),
        ("base_type", "i4"),
        ("count", "i8"),
    ],
    align=True,
)

SLICED_SOURCE = np.dtype([("data", "u8"), ("type", "i4"), ("absolute", "i4"), ("slices", "u8")], align=True)
SLICED_JOB = np.dtype(
    [
        ("out", "u8"),
        ("base", "u8"),
        ("sources", "u8"),
        ("rows", "i8"),
        ("width", "i8"),
        ("stride", "i8"),
        ("out_type", "i4"),
        ("base_type", "i4"),
        ("count", "i8"),
        ("across", "i8"),
    ],
    align=True,
)

_SOURCE_FILES = [Path(__file__).with_name(name) for name in ("sliced_kernels.c", "drop_kernels.c")]
_INCLUDED = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_TUNED = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())

Jobs = npt.NDArray[np.void]


class Library:
    """The compiled functions. Calls share the work out over torch's number of threads and release the interpreter."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        assert self._library.struct_sizes() == SOURCE.itemsize * 1000 + JOB.itemsize
        assert self._library.sliced_struct_sizes() == SLICED_SOURCE.itemsize * 1000 + SLICED_JOB.itemsize
        assert self._library.most_sources() == MOST
        assert self._library.most_columns() == STRIP
        assert self._library.drop_lanes() == LANES
        pointer, whole, word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
        self._library.drop.argtypes = [pointer, *[whole] * 3, word, word, pointer, pointer, whole, pointer, pointer]
        self._library.keep.argtypes = [pointer, pointer, ctypes.c_double, whole]
        self._library.subtract.argtypes = [pointer, pointer, ctypes.c_int32, pointer, ctypes.c_int32, whole]
        self.half = bool(self._library.has_half())
        self._pool: ThreadPoolExecutor | None = None

    def takes(self, *dtypes: torch.dtype) -> bool:
        """Whether tensors of these types can be in a job."""
        return all(dtype in TYPES and (dtype != torch.float16 or self.half) for dtype in dtypes)

    def merge(self, jobs: Jobs) -> None:
        """Run merge jobs; each writes its ``out``."""
        self._share(self._library.merge, jobs)

    def contract(self, jobs: Jobs, width: int) -> npt.NDArray[np.float64]:
        """Run contraction jobs; each one's ``out`` is the gradient.

        Returns:
            float64[jobs, width]: the scalar product of every job's gradient with each of its sources' deltas.
        """
        partials = np.zeros((len(jobs), width))
        self._share(self._library.contract, jobs, ctypes.c_void_p(partials.ctypes.data), ctypes.c_int64(width))
        return partials

    def merge_sliced(self, jobs: Jobs) -> None:
        """Run merge jobs of slices; each writes its ``out``."""
        self._share(self._library.merge_sliced, jobs)

    def contract_sliced(self, jobs: Jobs) -> None:
        """Run contraction jobs of slices; each one's ``out`` is the gradient, and its sums are added to ``slices``."""
        self._share(self._library.contract_sliced, jobs)

    def subtract(self, out: torch.Tensor, tuned: torch.Tensor, base: torch.Tensor) -> bool:
        """Write tuned - base into ``out``, fp32 and contiguous, each cast up first; whether these tensors can be."""
        sides = tuned, base
        if not self.takes(*(side.dtype for side in sides)) or not all(
            side.device.type == "cpu" and side.is_contiguous() for side in sides
        ):
            return False
        typed = (part for side in sides for part in (side.data_ptr(), TYPES[side.dtype]))
        self._library.subtract(out.data_ptr(), *typed, out.numel())
        return True

    def drop(
        self,
        rows: torch.Tensor,
        start: int,
        key: int,
        below: npt.NDArray[np.uint64],
        factors: npt.NDArray[np.float64],
        *,
        stays: npt.NDArray[np.uint8] | None,
        sums: npt.NDArray[np.float64] | None,
    ) -> None:
        """Drop entries of ``rows``, fp32 and contiguous, in place; see `optmerge.merging.methods.thinning.thin`."""
        narrow = factors.astype(np.float32)
        done = self._library.drop(
            rows.data_ptr(),
            *rows.shape,
            start,
            key & (2**64 - 1),
            key >> 64,
            below.ctypes.data,
            narrow.ctypes.data,
            len(below),
            None if stays is None else stays.ctypes.data,
            None if sums is None else sums.ctypes.data,
        )
        if not done:
            raise MemoryError(f"There is no memory to rank {rows.shape[-1]} entries.")

    def keep(self, values: torch.Tensor, stays: npt.NDArray[np.uint8], scale: float) -> None:
        """Multiply fp32 values by ``scale`` where ``stays`` is 1, by 0 elsewhere, in place."""
        self._library.keep(values.data_ptr(), stays.ctypes.data, scale, values.numel())

    def _share(self, function: ctypes._NamedFuncPointer, jobs: Jobs, *rest: object) -> None:
        threads = min(torch.get_num_threads(), len(jobs))
        counter = np.zeros(1, dtype=np.int64)
        arguments = (
            ctypes.c_void_p(jobs.ctypes.data),
            ctypes.c_int64(len(jobs)),
            ctypes.c_void_p(counter.ctypes.data),
            *rest,
        )
        if threads > 1 and self._pool is None:
            self._pool = ThreadPoolExecutor(max(os.cpu_count() or 1, threads) - 1, thread_name_prefix="merge")
        helpers = [self._pool.submit(function, *arguments) for _ in range(threads - 1)] if self._pool else []
        try:
            function(*arguments)
        finally:
            wait(helpers)  # also when the user interrupts: they hold addresses, which keep nothing alive
        for helper in helpers:
            helper.result()


@cache
def compiled() -> Library | None:
    """The library, built on the first call ever and then found in the cache; None where torch does the work.

    Raises:
        ConfigError: ``OPTMERGE_KERNELS`` has an unknown value.
        RunError: It is ``compiled``, and nothing can be.
    """
    wanted = _wanted()
    if wanted == "torch":
        return None
    try:
        return Library(_build())
    except (OSError, RunError, AssertionError, AttributeError, subprocess.SubprocessError) as problem:
        advice = (
            "Merging on the CPU is several times faster with a C compiler: install gcc or clang, or name one in CC."
        )
        if wanted == "compiled":
            raise RunError(f"The kernels cannot be compiled: {_in_short(problem, 300)} {advice}") from None
        log.warning("kernels.c cannot be compiled (%s). %s", _in_short(problem, 200), advice)
        return None


@cache
def fused(device: torch.device) -> Fused | None:
    """The fused kernels of a CUDA device, compiled and checked on the first call; None where torch does the work.

    Raises:
        ConfigError: ``OPTMERGE_KERNELS`` has an unknown value.
        RunError: It is ``compiled``, and they cannot be used.
    """
    wanted = _wanted()
    if wanted == "torch" or device.type != "cuda":
        return None
    try:
        return Fused(device)
    except Exception as problem:  # Triton and drivers raise whatever they like, and torch can always do the work
        told = f"The fused kernels cannot be used on {device} ({type(problem).__name__}: {_in_short(problem, 200)})."
        if wanted == "compiled":
            raise RunError(
                f"{told} Install PyTorch's CUDA build with its Triton and a C compiler, or set OPTMERGE_KERNELS=auto."
            ) from problem
        log.warning("%s Torch's operations are used: merges have the same bits, and take several times longer.", told)
        return None


def kind(device: torch.device) -> str:
    """Who does the arithmetic on the device: ``compiled`` (`kernels.c`), ``triton``, or ``torch``."""
    if device.type == "cpu":
        return "torch" if compiled() is None else "compiled"
    return "torch" if fused(device) is None else "triton"


def _wanted() -> str:
    wanted = os.environ.get("OPTMERGE_KERNELS", "auto")
    if wanted not in ("auto", "torch", "compiled"):
        raise ConfigError(f"OPTMERGE_KERNELS is {wanted!r}; expected auto, torch or compiled.")
    return wanted


def _in_short(problem: BaseException, most: int) -> str:
    return " ".join(str(problem).split())[:most]


def _build() -> Path:
    """The path of the shared library for this source, compiler and processor."""
    compiler = _compiler()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    identity = [
        *(source.read_text() for source in _SOURCE_FILES),
        _INCLUDED.read_text(),
        *compiler,
        version,
        *_FLAGS,
        *map(str, _TUNED),
        platform.machine(),
        _processor(),
    ]
    name = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]
    path = cache_dir() / "kernels" / f"{name}.so"
    if not path.exists():
        with atomic_path(path) as temporary:
            _compile(compiler, temporary)
    return path


def _compiler() -> list[str]:
    """The compiler's command: ``CC`` may have arguments, as in "ccache gcc"."""
    named = os.environ.get("CC")
    for candidate in [named] if named else ["cc", "gcc", "clang"]:
        program, *arguments = shlex.split(candidate) or [candidate]
        found = shutil.which(program)
        if found:
            return [found, *arguments]
    raise RunError(f"there is no C compiler {named or 'cc, gcc or clang'} on the path.")


def _compile(compiler: list[str], to: Path) -> None:
    told = ""
    for tuned in _TUNED:
        with tempfile.TemporaryDirectory() as folder:  # compilers leave temporary files beside the output
            built = Path(folder, "kernels.so")
            command = [*compiler, *_FLAGS, *tuned, "-o", str(built), *map(str, _SOURCE_FILES)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode == 0:
                shutil.copyfile(built, to)
                return
            told = done.stderr
    raise RunError(f"{' '.join(compiler)} failed: {told.strip()}")


def _processor() -> str:
    """What the processor can do; a library tuned for one must not run on another that shares the cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
