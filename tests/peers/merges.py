"""One merge by both: a peer's of a folder of state dicts, in its own environment, and ours of the same tensors.

(result,) = theirs(peer, tmp_path, models, "ties", {"density": 0.2, "weight": 1.0})     # mergekit's
same(ours(models, "ties", compat="mergekit", density=0.2), result)

fusionbench = scripted(run_in(FUSIONBENCH), folder, models, SCRIPT, [("wudi", {"iter_num": 300})])
close(ours(models, "wudi"), fusionbench("wudi", {"iter_num": 300}))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from optmerge.config.methods import METHOD_CONFIGS, MethodConfig
from optmerge.merging.methods import build_method
from tests.merging.methods.toy import ToyModels, every_kind
from tests.peers.conftest import Peer

Job = tuple[str, Mapping[str, object]]
"""The name of a method and its options."""
Scripted = Callable[[str, Mapping[str, object]], dict[str, torch.Tensor]]
"""A job's name and options -> what the peer made of it."""

MERGE = """
import json, sys
import torch
from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import load_file, save_file
folder, method, models, base, jobs = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:])
torch.manual_seed(0)
dicts = {name: load_file(f"{folder}/{name}.safetensors") for name in models}
for number, parameters in enumerate(jobs):
    merged = merge_state_dicts(dicts, method, parameters=parameters, base=base)
    whole = {name: tensor.contiguous() for name, tensor in merged.items()}
    save_file(whole, f"{folder}/theirs-{number}.safetensors")
"""
WEIGHTS = {"expert-0": 0.4, "expert-1": 1.5, "expert-2": 0.7}


def random_models() -> ToyModels:
    """Three experts with a parameter of every kind, but for the empty one."""
    whole = every_kind(3, seed=11)
    names = [name for name in whole.names if whole.base(name).numel()]
    base = {name: whole.base(name) for name in names}
    experts = {expert: {name: whole.expert(expert, name) for name in names} for expert in whole.experts}
    return ToyModels(base, experts)


def theirs(
    peer: Peer,
    folder: Path,
    models: ToyModels,
    method: str,
    *jobs: dict[str, object],
    listed: tuple[str, ...] = ("base", "expert-0", "expert-1", "expert-2"),
    base: str | None = "base",
) -> list[dict[str, torch.Tensor]]:
    """What mergekit makes of each job's parameters; its start is what takes time."""
    save(models, folder, listed)
    peer("python", "-c", MERGE, folder, method, json.dumps(listed), json.dumps(base), json.dumps(jobs))
    return [load_file(folder / f"theirs-{number}.safetensors") for number in range(len(jobs))]


def scripted(peer: Peer, folder: Path, models: ToyModels, script: str, jobs: Sequence[Job]) -> Scripted:
    """What a program of the peer makes of each job; its start is what takes time.

    Args:
        peer: Runs it.
        folder: For the models and what becomes of them.
        models: ``base.safetensors`` and ``EXPERT.safetensors`` in the folder.
        script: The program. It is given the folder, the experts' names and the jobs, the latter two as JSON, and writes
            ``theirs-NUMBER.safetensors``.
        jobs: All of them.
    """
    save(models, folder, ("base", *models.experts))
    peer("python", "-c", script, folder, json.dumps(models.experts), json.dumps(jobs))
    results = [load_file(folder / f"theirs-{number}.safetensors") for number in range(len(jobs))]
    return lambda name, options: results[jobs.index((name, options))]


def save(models: ToyModels, folder: Path, names: Sequence[str]) -> None:
    """Each one's state dict as a file, of ``base`` and of experts."""
    for name in names:
        read = models.base if name == "base" else partial(models.expert, name)
        save_file({parameter: read(parameter).clone() for parameter in models.names}, folder / f"{name}.safetensors")


def ours(models: ToyModels, name: str, **settings: object) -> dict[str, torch.Tensor]:
    config: MethodConfig = METHOD_CONFIGS[name].model_validate(settings)  # type: ignore[assignment]
    method = build_method(config, models.experts)
    method.prepare(models)
    return {parameter: models.base(parameter) + method.delta(models, parameter) for parameter in models.names}


def same(
    left: dict[str, torch.Tensor],
    right: dict[str, torch.Tensor],
    *,
    but: tuple[str, ...] = (),
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> None:
    assert set(left) == set(right)
    for name, value in left.items():
        if name not in but:
            torch.testing.assert_close(value, right[name], rtol=rtol, atol=atol, msg=name)


close = partial(same, rtol=0, atol=1e-5)
