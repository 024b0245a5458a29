"""What the benchmarks compare is what they say: an apply writes the merge, and differences are told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.clip_case import Case
from benchmarks.harness import ROOT, environment
from benchmarks.merge import at_threshold, compare
from benchmarks.opened import open_engine
from benchmarks.random_models import RandomFamily, random_tensor, write_family


def test_an_opened_engine_writes_the_merge(tmp_path: Path) -> None:
    family = write_family(tmp_path, "llama-tiny", experts=2, dtype=torch.float32)
    opened = open_engine(family.base, family.experts, form="accumulate")
    assert opened.nbytes == family.nbytes
    table = np.random.default_rng(0).uniform(0.1, 0.9, (len(opened.names), 2))
    assert opened.engine.apply(table) == len(opened.names)
    for name, row in zip(opened.names, table.tolist(), strict=True):
        written = opened.engine.parameters[name].data
        base, *experts = (
            random_tensor(name, tuple(written.shape), dtype=torch.float32, expert=who) for who in (None, 0, 1)
        )
        expected = base + sum(c * (expert - base) for c, expert in zip(row, experts, strict=True))
        torch.testing.assert_close(written, expected)


def test_the_loss_is_the_mean_entropy_of_a_task() -> None:
    case = Case.of(tasks=2, batch=3, image=4, hidden=8)

    class Still(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> object:
            self.pooler_output = pixel_values.flatten(1)[:, :8]
            return self

    losses = [float(case.loss(Still(), task)) for task in (0, 1)]
    for task, loss in enumerate(losses):
        features = torch.nn.functional.normalize(case.images(task).flatten(1)[:, :8], dim=-1)
        logits = 2.0 * 8**0.5 * features @ case.heads[task]
        expected = torch.distributions.Categorical(logits=logits).entropy().mean()
        assert abs(loss - float(expected)) < 1e-4
    assert losses[0] != losses[1]


def test_only_values_at_the_threshold_may_differ() -> None:
    base = torch.zeros(6)
    expert = torch.tensor([1.0, -2.0, 2.0, 3.0, 0.5, 2.0])  # half are kept: 3 and two of the three twos
    assert at_threshold(base, [expert]).tolist() == [False, True, True, False, False, True]


def test_differences_are_counted(tmp_path: Path) -> None:
    values = {
        "base": [0.0, 0.0, 0.0, 0.0],
        "e0": [1.0, 2.0, 2.0, 3.0],
        "a": [0.0, 2.0, 0.0, 3.0],
        "b": [0.5, 0.0, 2.0, 3.0],
    }
    for name, numbers in values.items():
        (tmp_path / name).mkdir()
        save_file({"w": torch.tensor(numbers, dtype=torch.bfloat16)}, tmp_path / name / "model.safetensors")
    family = RandomFamily(tmp_path / "base", {"e0": tmp_path / "e0"}, parameters=4, nbytes=8)
    found = compare(tmp_path / "a", tmp_path / "b", family)
    assert (found.tensors, found.unequal, found.values, found.total, found.largest) == (1, 1, 3, 4, 2.0)
    assert found.unexplained == 1  # the first value; the twos are at the threshold
    assert "1 of these 3 not at a threshold" in str(found)
    assert "none" in str(compare(tmp_path / "a", tmp_path / "a", family))


def test_a_worker_answers_until_its_input_ends(tmp_path: Path) -> None:
    family = write_family(tmp_path, "llama-tiny", experts=1, dtype=torch.bfloat16)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.apply_worker", str(family.base), str(family.experts["e0"])],
        input="apply\napply\ncopy\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**environment(), "OPTMERGE_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["value"] for answer in answers] == [21, 21, 3 * family.nbytes]
    assert all(answer["seconds"] > 0 for answer in answers)
