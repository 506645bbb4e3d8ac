"""Python values as strict JSON: no NaN, no surprise in what compares equal after a round trip."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def jsonable(value: Any) -> Any:
    """Plain JSON data: dataclasses become objects, tuples lists, arrays nested lists, paths and enumerations text.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    match value:
        case Mapping():
            return {str(key): jsonable(item) for key, item in value.items()}
        case enum.Enum():
            return jsonable(value.value)
        case set() | frozenset():
            return [jsonable(item) for item in sorted(value)]
        case list() | tuple():
            return [jsonable(item) for item in value]
        case np.generic() | np.ndarray():
            return jsonable(value.tolist())
        case Path():
            return str(value)
        case str() | int() | float() | None:
            return value
    raise TypeError(f"JSON cannot hold a {type(value).__name__}: {value!r}")


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON text; numbers that are not finite become null and are named under `non_finite` of their object."""
    return json.dumps(_finite(jsonable(value)), allow_nan=False, ensure_ascii=False, indent=indent)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            bad = [key for key, item in value.items() if _is_bad(item)]
            clean = {key: _finite(item) for key, item in value.items()}
            return {**clean, "non_finite": bad} if bad else clean
        case list():
            return [_finite(item) for item in value]
    return None if _is_bad(value) else value


def _is_bad(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
