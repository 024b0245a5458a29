from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optmerge.drivers.state import StateValue, dumps, loads
from optmerge.errors import RunError

arrays = hnp.arrays(st.sampled_from(["<f8", "<f4", "<i8", "<u4", "?"]), hnp.array_shapes(min_dims=0, min_side=0))
keys = st.text().filter(lambda key: not key.startswith("$"))  # keys of the encoding itself are refused
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | arrays
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


def alike(first: StateValue, second: StateValue) -> bool:
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and list(first) == list(second) and all(alike(first[k], second[k]) for k in first)
        )
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, np.ndarray):
        assert isinstance(second, np.ndarray)
        return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    if isinstance(first, float) and first != first:
        return isinstance(second, float) and second != second
    return type(first) is type(second) and repr(first) == repr(second)  # repr tells -0.0 from 0.0


@given(st.dictionaries(keys, values, max_size=4))
def test_round_trip(state: dict[str, StateValue]) -> None:
    blob = dumps(state)
    assert alike(loads(blob), state)
    assert dumps(loads(blob)) == blob


def test_generator_state_round_trips() -> None:
    generator = np.random.default_rng(5)
    generator.standard_normal(7)
    blob = dumps({"generator": dict(generator.bit_generator.state)})
    expected = generator.standard_normal(9)
    other = np.random.default_rng(0)
    other.bit_generator.state = loads(blob)["generator"]
    assert other.standard_normal(9).tobytes() == expected.tobytes()


def test_loaded_arrays_can_be_written() -> None:
    array = loads(dumps({"a": np.zeros(3)}))["a"]
    assert isinstance(array, np.ndarray)
    array[0] = 1.0


@pytest.mark.parametrize("value", [object(), {1}, np.float32(1.0), np.array(["a"]), np.array([None]), 1j])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="a state cannot hold"):
        dumps({"value": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("key", ["$array", "$bytes", 3])
def test_keys_that_would_not_come_back_are_refused(key: object) -> None:
    with pytest.raises(TypeError, match="cannot hold the key"):
        dumps({"a": {key: 1}})  # type: ignore[dict-item]


@given(st.data())
def test_damage_is_found(data: st.DataObject) -> None:
    blob = dumps({"values": np.arange(5.0), "n": 3})
    at = data.draw(st.integers(0, len(blob) - 1))
    flipped = blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :]
    for damaged in (flipped, blob[:at]):
        with pytest.raises(RunError):
            loads(damaged)


def test_a_pickle_is_not_a_state() -> None:
    with pytest.raises(RunError, match="not a driver's state"):
        loads(b"\x80\x04cos\nsystem\n")


@pytest.mark.parametrize("body", [[1], {"a": {"$array": "", "dtype": "O", "shape": [0]}}, {"a": {"$bytes": "?"}}])
def test_a_forged_body_is_refused(body: object) -> None:
    import hashlib

    text = json.dumps(body).encode()
    with pytest.raises(RunError):
        loads(b"optmerge driver state 1 " + hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
