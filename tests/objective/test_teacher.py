from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optmerge.errors import RunError
from optmerge.objective import Outputs, TeacherBatch, TeacherOutputs
from optmerge.objective.kept import Keep, coarse_log_probs
from optmerge.objective.projection import projected

from .cases import CLASSES, WIDTH, make_case

KINDS = ["classifier", "lm"]
both = pytest.mark.parametrize("kind", KINDS)


def assert_same(one: TeacherBatch, other: TeacherBatch) -> None:
    assert torch.equal(one.log_probs, other.log_probs)
    assert torch.equal(one.choice, other.choice)
    for name in ("indices", "drawn", "drawn_log_probs"):
        mine, its = getattr(one, name), getattr(other, name)
        assert (mine is None) == (its is None)
        assert mine is None or torch.equal(mine, its)
    assert one.tempered.keys() == other.tempered.keys()
    assert all(torch.equal(noted, other.tempered[t]) for t, noted in one.tempered.items())


@both
@pytest.mark.parametrize("k", [None, 2])
def test_batches_are_looked_up_in_their_own_order(kind: str, k: int | None) -> None:
    case = make_case(kind)
    collected = [case.batch([2]), case.batch([3, 0]), case.batch([1], left=True)]
    outputs = TeacherOutputs.collect(collected, Keep(k))
    assert outputs.size == 4
    assert outputs.classes == CLASSES
    for positions in ([2], [3, 0], [0, 1, 2, 3], [1, 1], [0, 2]):
        batch, said = case.batch(positions)
        flat = said.logits if batch.rows is None else said.logits.reshape(-1, CLASSES)[batch.rows]
        found = outputs.batch(batch)
        torch.testing.assert_close(found.log_probs, coarse_log_probs(flat, found.indices))
        assert torch.equal(found.choice, flat.argmax(-1))
        if k is not None:
            assert found.indices is not None
            assert torch.equal(found.indices, flat.topk(k).indices)


def test_the_batches_that_it_came_from_are_views() -> None:
    case = make_case("lm")
    outputs = TeacherOutputs.collect([case.batch([2, 0]), case.batch([1, 3])], Keep(2))
    batch, _ = case.batch([1, 3])
    assert (
        outputs.batch(batch).log_probs.untyped_storage().data_ptr()
        == outputs._rows.log_probs.untyped_storage().data_ptr()
    )


@both
@pytest.mark.parametrize("keep", [Keep(None), Keep(2), Keep(2, samples=3, temperatures=(0.5, 2.0))])
def test_saved_and_loaded_is_the_same(kind: str, keep: Keep, tmp_path: Path) -> None:
    case = make_case(kind)
    outputs = TeacherOutputs.collect([case.batch([3, 1]), case.batch([0, 2])], keep)
    path = tmp_path / "teacher.safetensors"
    outputs.save(path)
    loaded = TeacherOutputs.load(path)
    assert loaded.classes == outputs.classes
    assert loaded.nbytes == outputs.nbytes
    for positions in ([0, 1, 2, 3], [3, 1]):
        batch, _ = case.batch(positions)
        assert_same(loaded.batch(batch), outputs.batch(batch))


@both
def test_what_is_drawn_depends_on_no_micro_batch(kind: str) -> None:
    case = make_case(kind)
    keep = Keep(2, samples=3)
    one = TeacherOutputs.collect([case.batch([0, 1, 2, 3])], keep)
    other = TeacherOutputs.collect([case.batch([3]), case.batch([1, 0], left=True), case.batch([2])], keep)
    batch, _ = case.batch([0, 1, 2, 3])
    assert_same(one.batch(batch), other.batch(batch))
    assert one.batch(batch).drawn is not None


@pytest.mark.parametrize("keep", [Keep(128), Keep(64, samples=64), Keep(64, samples=64, temperatures=(2.0,))])
def test_a_rows_size_is_known_beforehand(keep: Keep) -> None:
    batch, _ = make_case("classifier").batch([0, 1, 2, 3])
    for classes in (100, 128, 129, 40_000):
        logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(0))
        outputs = TeacherOutputs.collect([(batch, Outputs(logits))], keep)
        assert outputs.nbytes == 4 * (keep.row_bytes(classes) + 16)


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="Delete the file"):
        TeacherOutputs.load(path)
    with pytest.raises(RunError, match="cannot be read"):
        TeacherOutputs.load(tmp_path / "absent.safetensors")
    from safetensors.torch import save_file

    save_file({"log_probs": torch.zeros(1)}, path)
    with pytest.raises(RunError, match="does not hold teacher outputs"):
        TeacherOutputs.load(path)


def test_every_example_must_come_once() -> None:
    case = make_case("classifier")
    with pytest.raises(ValueError, match="once each"):
        TeacherOutputs.collect([case.batch([0, 1]), case.batch([1])], Keep(None))
    with pytest.raises(ValueError, match="once each"):
        TeacherOutputs.collect([case.batch([1, 2])], Keep(None))


def test_what_is_kept_is_small() -> None:
    generator = torch.Generator().manual_seed(0)
    batch, _ = make_case("classifier").batch([0, 1, 2, 3])
    logits = torch.randn(4, 50_000, generator=generator)
    outputs = TeacherOutputs.collect([(batch, Outputs(logits))], Keep(128))
    assert outputs.nbytes < 4 * (128 * 8 + 32)
    assert not outputs.batch(batch).log_probs.requires_grad


@both
@pytest.mark.parametrize("project", [None, 2, 50])
def test_hidden_states_are_kept_where_the_model_looks(kind: str, project: int | None, tmp_path: Path) -> None:
    case = make_case(kind)
    collected = [case.batch([2]), case.batch([3, 0], extra=2), case.batch([1], left=True)]
    made = TeacherOutputs.collect(collected, Keep(2, (0, 2), project))
    bare = TeacherOutputs.collect(collected, Keep(2))
    path = tmp_path / "teacher.safetensors"
    made.save(path)
    for outputs in (made, TeacherOutputs.load(path)):
        assert outputs.nbytes == made.nbytes
        for positions in ([2], [3, 0], [0, 1, 2, 3], [1, 1]):
            batch, _ = case.batch(positions, extra=1)
            found = outputs.batch(batch)
            assert sorted(found.hidden) == [0, 2]
            assert_same(found, bare.batch(batch))
            for layer, states in found.hidden.items():
                wanted = torch.cat([case.hidden[p][layer] for p in positions])
                assert torch.equal(states, projected(wanted, project or WIDTH))
    places = sum(len(ids) for ids in case.ids)
    assert made.nbytes == bare.nbytes + 2 * (4 * places * min(project or WIDTH, WIDTH) + 2 * 8 * 4)


@both
def test_hidden_states_are_kept_in_the_models_dtype(kind: str) -> None:
    case = make_case(kind, dtype=torch.bfloat16)
    collected = [case.batch([0, 1, 2, 3])]
    for project in (None, 2):
        outputs = TeacherOutputs.collect(collected, Keep(None, (1,), project))
        assert outputs.batch(collected[0][0]).hidden[1].dtype == torch.bfloat16


def test_a_projection_keeps_mean_squares_and_is_the_same_every_time() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2000, 512, generator=generator)
    small = projected(states, 64)
    assert small.shape == (2000, 64)
    ratio = small.square().mean(-1) / states.square().mean(-1)
    assert abs(float(ratio.mean()) - 1) < 0.03
    assert float(ratio.std()) < 1.3 * (2 / 64) ** 0.5
    torch.testing.assert_close(projected(states[3:5].clone(), 64), small[3:5])
    assert projected(states.double(), 64).dtype == torch.float64
    assert projected(states, 512) is states
