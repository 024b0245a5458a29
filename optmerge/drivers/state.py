"""A driver's state as bytes, and back, without ever running code from the file.

One line of magic with a SHA-256, then JSON; arrays stand in it as base64 of their bytes. No pickle: nothing in a
state file can name a class or a function. (pycma's own state is a pickle; its driver stores what it was told
instead, and replays it.)

    blob = dumps(driver.state_dict())
    driver.load_state_dict(loads(blob))
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from optmerge.errors import RunError

StateValue: TypeAlias = (
    "bool | int | float | str | bytes | npt.NDArray[Any] | list[StateValue] | dict[str, StateValue] | None"
)
State: TypeAlias = "dict[str, StateValue]"

MAGIC = b"optmerge driver state 1"
_TAGS = ("$array", "$bytes")  # a dictionary with one of these keys is not a dictionary but what it encodes


def dumps(state: Mapping[str, StateValue]) -> bytes:
    """The bytes of ``state``; equal states give equal bytes.

    Args:
        state: Nested dictionaries with string keys and lists of None, bool, int (of any size), float (NaN and
            infinities too), str, bytes and numpy arrays of numbers or booleans.

    Raises:
        TypeError: Something else is in it.
    """
    body = json.dumps(_encode(dict(state)), separators=(",", ":")).encode()
    return MAGIC + b" " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def loads(blob: bytes) -> State:
    """The state that `dumps` wrote; lists come back as lists, arrays with their dtype and shape.

    Raises:
        RunError: The bytes are not a state, or are damaged.
    """
    head, _, body = blob.partition(b"\n")
    if not head.startswith(MAGIC + b" "):
        raise RunError(f"This is not a driver's state: it begins with {head[:40]!r}, expected {MAGIC.decode()!r}.")
    if head != MAGIC + b" " + hashlib.sha256(body).hexdigest().encode():
        raise RunError(
            f"The driver's state is damaged: its {len(body)} bytes do not have the SHA-256 in its first line. "
            "Resume from the state before it."
        )
    try:
        state = _decode(json.loads(body))
    except (ValueError, KeyError, TypeError, binascii.Error) as problem:
        raise RunError(f"The driver's state cannot be read ({problem}).") from None
    if not isinstance(state, dict):
        raise RunError(f"The driver's state is a {type(state).__name__}, expected a dictionary.")
    return state


def _encode(value: StateValue) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)  # json writes the shortest text that reads back as the same number
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"a state cannot hold an array of {value.dtype}")
        plain = value.astype(value.dtype.newbyteorder("<"), copy=False)
        data = base64.b64encode(plain.tobytes()).decode()
        return {"$array": data, "dtype": plain.dtype.str, "shape": list(value.shape)}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key in _TAGS:
                raise TypeError(f"a state cannot hold the key {key!r}")
        return {key: _encode(item) for key, item in value.items()}
    raise TypeError(f"a state cannot hold a {type(value).__name__}")


def _decode(value: Any) -> StateValue:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        if "$bytes" in value:
            return base64.b64decode(value["$bytes"], validate=True)
        if "$array" in value:
            dtype = np.dtype(value["dtype"])
            if dtype.kind not in "biuf":
                raise ValueError(f"an array of {dtype}")
            data = base64.b64decode(value["$array"], validate=True)
            array = np.frombuffer(data, dtype=dtype).reshape(value["shape"])
            return array.astype(dtype.newbyteorder("="), copy=True)
        return {key: _decode(item) for key, item in value.items()}
    plain: StateValue = value
    return plain
