"""The memory that a search will need, and what is chosen because of it.

On the CPU base and experts stay in mapped files, which the system may drop and read again: they count as page cache,
not as memory. On an accelerator they are kept resident as far as the budget goes, the base first, and streamed through
pinned buffers otherwise. Weight gradients are accumulated over a step and contracted once where they fit, and
contracted one by one in every backward pass where they do not. Where a model is spread over several devices, each must
have room for its share (`memory_division`).

    plan = plan_memory(config, family, directions, space, calibration, spread, dtype)
    plan.parts, plan.peak, plan.form, plan.resident
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from optmerge.config.amounts import amount_bytes
from optmerge.config.drivers import CURVATURE_DRIVERS, GRADIENT_DRIVERS
from optmerge.config.schema import SearchConfig
from optmerge.config.spectral import SpectralConfig
from optmerge.merging.engine import Form
from optmerge.merging.parts import PART
from optmerge.merging.recipe import Direction
from optmerge.merging.writing import LOW_RANK_CHUNK, Workspace
from optmerge.models.resident import ResidentModel
from optmerge.models.spread import Spread
from optmerge.objective.kept import Keep
from optmerge.objective.objective import Objective
from optmerge.runner.curvature import BLOCK
from optmerge.runner.memory_division import DeviceMemory, Division, logit_bytes
from optmerge.runner.simulation import META, Passes
from optmerge.runner.statistics_cost import layer_inputs_bytes, needs_of, statistics_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from optmerge.calibration.data import Calibration
    from optmerge.models.family import Family
    from optmerge.space.space import SearchSpace

RESERVE = 0.1  # share of an accelerator's free memory that stays free: fragments, and what libraries take
_CONTROL_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryPlan:
    """What a search will hold at its peak, in bytes.

    Attributes:
        parts: What -> bytes, on the device that the search runs on, or on all of them together.
        mapped: Bytes of mapped files: page cache that the system takes back when it needs to.
        budget: What may be used, of all devices together.
        form: How weight gradients are gathered; None where the driver needs none.
        resident: Directions whose tensors are kept on an accelerator; the others are streamed.
        base_resident: Whether the base's are, too.
        notes: What a user should know.
        devices: What each device holds, where there are several.
    """

    parts: Mapping[str, int]
    mapped: int
    budget: int
    form: Form | None
    resident: tuple[str, ...] = ()
    base_resident: bool = False
    notes: tuple[str, ...] = field(default=())
    devices: tuple[DeviceMemory, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())


def plan_memory(
    config: SearchConfig,
    family: Family,
    directions: Sequence[Direction],
    space: SearchSpace,
    calibration: Calibration,
    spread: Spread,
    dtype: torch.dtype,
) -> MemoryPlan:
    """Predict a search's memory, and choose the form of the gradient and what is resident.

    Reads no weights: model, objective and one batch of every kind run on the meta device.

    Raises:
        ConfigError: An architecture cannot be checkpointed.
    """
    device, budgets = spread.main, [memory_budget(config.memory, device) for device in spread.devices]
    budget = sum(budgets)
    gradient = config.driver.name in GRADIENT_DRIVERS
    classes = {name: data.num_labels for name, data in calibration.tasks.items()}
    keep = Objective(config.objective, list(config.tasks), classes).keep(family.num_layers)
    model = ResidentModel(family, device=META, dtype=dtype)
    weights = _weights(model, family)
    judged = logit_bytes(family, calibration, config.batch_tokens) if spread.several else 0
    division = Division(spread, weights, budgets, judged=judged)
    common = {
        "process": _process_bytes() if device.type == "cpu" else 0,
        "model": sum(weights.values()),
        "teacher outputs": teacher_bytes(config, family, calibration, keep, dtype),
        "buffers": _buffer_bytes(family, device, dtype),
        "coefficients": _coefficient_bytes(config, space),
    }
    if config.driver.name in CURVATURE_DRIVERS:
        common["features"] = 2 * BLOCK  # of all variables, and where they are made
    form: Form | None = "accumulate" if gradient else None
    passing = "gradients and activations" if gradient else "activations"
    notes: list[str] = []
    try:
        passes = Passes(config, family, model, space, calibration)
        judging = passes.peak(None)
        evaluation = max(judging, passes.peak(form)) if form else judging
        if form and not division.fits(common | {passing: evaluation}):
            form, evaluation = "hooks", max(judging, passes.peak("hooks"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as problem:
        # An architecture whose pass depends on values cannot run without any; the search itself can.
        evaluation = common["model"] if gradient else 0
        told = " ".join(str(problem).split())[:200]
        notes.append(f"The memory of a pass could not be found out ({told}); its activations are not in the estimate.")
    parts = {**common, passing: evaluation}
    before = _preparing_bytes(family, directions)  # methods are computed before anything is evaluated
    if device.type == "cpu":
        needs = needs_of(directions, list(family.experts))
        widths = {name: _hidden_size(family.configs[name]) for name in family.experts}
        before += layer_inputs_bytes(needs, calibration, widths, dtype.itemsize)
    if before > evaluation:
        parts["computing methods, beyond that"] = before - evaluation
    needed = sum(division.whole(parts).values())
    if not division.fits(parts):
        if before > evaluation:
            advice = ["no whole methods among directions and baselines"]
        else:
            advice = [] if config.checkpointing or not gradient else ["checkpointing: true"]
            advice += ["fewer batch_tokens"] if config.batch_tokens > 256 else []
        advice += ["dtype: bfloat16"] if dtype == torch.float32 else []
        where = " on all devices together, and one of them has too little" if spread.several else ""
        notes.append(
            f"About {needed / 1e9:.1f} GB are needed and {budget / 1e9:.1f} GB may be used{where}; "
            f"{' or '.join(advice) if advice else 'a smaller model or a larger machine'} would help."
        )
    resident: tuple[str, ...] = ()
    base_resident = False
    devices = division.devices(parts, [0] * len(budgets))
    if device.type == "cuda":
        base_resident, resident, taken = _place(family, directions, spread, division.rooms(parts))
        devices = division.devices(parts, taken)
        parts["resident base and experts"] = sum(taken)
    checkpoints = (family.base, *family.experts.values())
    mapped = sum(info.nbytes for checkpoint in checkpoints for info in checkpoint.tensors.values())
    methods = sum(direction.kind != "expert" for direction in directions)
    mapped += methods * sum(parameter.numel for parameter in family.parameters.values()) * 4
    return MemoryPlan(
        division.whole(parts), mapped, budget, form, resident, base_resident, tuple(notes), devices=devices
    )


def worst_plan(plans: Sequence[MemoryPlan]) -> MemoryPlan:
    """The plan of a search from those of its stages: the one with the highest peak, and a form that all can have."""
    worst = max(plans, key=lambda plan: plan.peak)
    forms = {plan.form for plan in plans}
    form: Form | None = "hooks" if "hooks" in forms else "accumulate" if "accumulate" in forms else None
    return replace(worst, form=form)


def memory_budget(text: str, device: torch.device) -> int:
    """Bytes that may be used: what the search file says, or with ``auto`` what is free now."""
    if text != "auto":
        return amount_bytes(text)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * (1 - RESERVE))
    return _process_bytes() + _available()


def teacher_bytes(
    config: SearchConfig, family: Family, calibration: Calibration, keep: Keep, dtype: torch.dtype
) -> int:
    """What the experts' outputs take that a search keeps, in bytes; see `TeacherOutputs`.

    Args:
        config: The search.
        family: Base and experts.
        calibration: Whose inputs the experts are run on.
        keep: What is kept.
        dtype: Of the resident model.
    """
    total = 0
    for data in calibration.tasks.values():
        expert = family.configs[data.expert]
        classes = data.num_labels or int(getattr(expert, "vocab_size", 0) or 0)
        per_row = keep.row_bytes(classes)
        per_place = keep.width(_hidden_size(expert)) * dtype.itemsize
        for name, split in data.splits.items():
            layers = len(keep.layers_on(name))
            total += 16 * split.size * (1 + layers)  # where every example's rows are
            total += per_place * layers * split.tokens
            for batch in split.batches(batch_tokens=config.batch_tokens):
                total += per_row * (len(batch.rows) if batch.rows is not None else batch.size)
    return total


def _hidden_size(config: PreTrainedConfig) -> int:
    """The width of a model's hidden states, or of its language or vision part's."""
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        size = getattr(part, "hidden_size", None)
        if isinstance(size, int):
            return size
    return 0


def recorded_bytes(config: SearchConfig, space: SearchSpace) -> int:
    """What one evaluation leaves behind: its vector, and its gradient and curvature where the driver needs them."""
    if config.driver.name in CURVATURE_DRIVERS:  # a step counts d + 1 evaluations
        return 8 * space.dimension * (2 + space.dimension) // (1 + space.dimension)
    return 8 * space.dimension * (2 if config.driver.name in GRADIENT_DRIVERS else 1)


def _coefficient_bytes(config: SearchConfig, space: SearchSpace) -> int:
    """The space's tables, six vectors of the driver, and the records of all evaluations."""
    evaluations = config.budget.evaluations or 0
    return space.nbytes + 6 * 8 * space.dimension + evaluations * recorded_bytes(config, space)


def _preparing_bytes(family: Family, directions: Sequence[Direction]) -> int:
    """What computing whole methods takes at most.

    A parameter of every expert in fp32, with all of its bands where it is divided, what is gathered for a file, and the
    statistics of a method that wants them.
    """
    methods = [direction.config for direction in directions if direction.config is not None]
    if not methods:
        return 0
    largest = max(parameter.numel for parameter in family.parameters.values())
    gathered = statistics_bytes(needs_of(directions, list(family.experts)), family)
    held = max(2 + method.bands if isinstance(method, SpectralConfig) else 1 for method in methods)
    return (held * len(family.experts) + 3) * largest * 4 + PART + gathered


def _buffer_bytes(family: Family, device: torch.device, dtype: torch.dtype) -> int:
    on = device if device.type == "cpu" else META
    total = Workspace(on, torch.float32).nbytes
    if any(hasattr(checkpoint, "adapter_folder") for checkpoint in family.experts.values()):
        total += LOW_RANK_CHUNK * 4
    return total


def _place(
    family: Family, directions: Sequence[Direction], spread: Spread, rooms: Sequence[int]
) -> tuple[bool, tuple[str, ...], list[int]]:
    """What is kept on accelerators: the base, which every candidate reads, then directions as long as they fit.

    Where there are several, each keeps its share of the same ones. The bytes that are taken are of every device.
    """
    taken = [0] * len(rooms)

    def keep(width: int | None) -> bool:
        sizes = [0] * len(rooms)
        for name, parameter in family.parameters.items():
            sizes[spread.number_of(name)] += parameter.numel * (width or parameter.dtype.itemsize)
        after = [size + before for size, before in zip(sizes, taken, strict=True)]
        fits = all(size <= room for size, room in zip(after, rooms, strict=True))
        if fits:
            taken[:] = after
        return fits

    base_resident = keep(None)
    resident = [direction.name for direction in directions if keep(4 if direction.kind != "expert" else None)]
    return base_resident, tuple(resident), taken


def _weights(model: ResidentModel, family: Family) -> dict[str, int]:
    """Parameter -> bytes, of all models: what they share counts once, heads of their own together."""
    held: dict[int, tuple[str, int]] = {}
    for expert in family.experts:
        for name, parameter in model.model_for(expert).named_parameters():
            size = parameter.numel() * parameter.dtype.itemsize
            held.setdefault(id(parameter), (name, size))
    weights: dict[str, int] = {}
    for name, size in held.values():
        weights[name] = weights.get(name, 0) + size
    return weights


def _process_bytes() -> int:
    """Anonymous memory of this process, which has imported all that a search imports."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(psutil.Process().memory_info().rss)


def _available() -> int:
    """Bytes that this process can still get: the machine's, or its control group's if that allows less.

    A control group's count of what is used includes the pages of files, mapped weights among them, which it takes back.
    """
    available = int(psutil.virtual_memory().available)
    try:
        limit = (_CONTROL_GROUP / "memory.max").read_text().strip()
        if limit != "max":
            used = int((_CONTROL_GROUP / "memory.current").read_text())
            counts = dict(line.split() for line in (_CONTROL_GROUP / "memory.stat").read_text().splitlines())
            used -= int(counts["active_file"]) + int(counts["inactive_file"])
            available = min(available, max(0, int(limit) - used))
    except (OSError, ValueError, KeyError):  # no control groups, or another version of them
        pass
    return available
