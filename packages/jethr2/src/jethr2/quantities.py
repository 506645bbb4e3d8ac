"""Fields that carry a unit, a source and the values that they allow."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jethr2.errors import ParameterError

Source = Literal["A", "L", "D", "S", "M"]
"""The paper's abstract, the lab's program, derived, assumed by the specification, measured with its prototype."""

_ALLOWED: dict[str, Callable[[float], bool]] = {
    "positive": lambda value: value > 0,
    "at least 0": lambda value: value >= 0,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
    "finite": math.isfinite,
}


class Provenance(NamedTuple):
    """Where one parameter comes from.

    Attributes:
        field: name; those of a nested group are dotted.
        value: in `unit`.
        unit: SI, empty for a pure number or a choice.
        source: A, L, D, S or M.
    """

    field: str
    value: Any
    unit: str
    source: Source


def quantity(default: Any, source: Source, unit: str = "", allowed: str = "positive") -> Any:
    """A dataclass field of one number, several, or none, every one of which must be `allowed`."""
    return dataclasses.field(default=default, metadata={"source": source, "unit": unit, "allowed": allowed})


def choice(default: Any, source: Source, *options: Any) -> Any:
    """A dataclass field that takes one of several values."""
    return dataclasses.field(default=default, metadata={"source": source, "unit": "", "options": options})


def interval(default: tuple[float, float], source: Source, unit: str = "") -> Any:
    """A dataclass field of a lower and a greater upper bound."""
    metadata = {"source": source, "unit": unit, "allowed": "finite", "interval": True}
    return dataclasses.field(default=default, metadata=metadata)


def check(params: Any) -> None:
    """Checks each field against what it allows, and turns whole numbers given for a float into floats.

    Raises:
        ParameterError: naming the field.
    """
    for field in dataclasses.fields(params):
        value, rule = getattr(params, field.name), field.metadata
        if "options" in rule:
            _check_choice(field.name, value, rule["options"])
        elif "allowed" in rule and value is not None:
            object.__setattr__(params, field.name, _numbers(field, value))
        elif value is None and "None" not in str(field.type):
            raise ParameterError(field.name, value, "a number")


def provenance(params: Any) -> list[Provenance]:
    """The table of a group of parameters: name, value, unit and source of every field."""
    rows = []
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if dataclasses.is_dataclass(value):
            rows += [row._replace(field=f"{field.name}.{row.field}") for row in provenance(value)]
        else:
            rows.append(Provenance(field.name, value, field.metadata["unit"], field.metadata["source"]))
    return rows


def _check_choice(name: str, value: Any, options: tuple[Any, ...]) -> None:
    if value in options and type(value) in {type(option) for option in options}:
        return
    allowed = "one of " + ", ".join(map(str, options))
    nearest = difflib.get_close_matches(str(value), [str(option) for option in options], n=1)
    raise ParameterError(name, value, allowed + (f" (did you mean {nearest[0]!r}?)" if nearest else ""))


def _numbers(field: dataclasses.Field, value: Any) -> Any:
    """The value with its numbers as floats, or ints where the default is one."""
    default, allowed = field.default, field.metadata["allowed"]
    if isinstance(default, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(default):
            raise ParameterError(field.name, value, f"{len(default)} numbers, each {allowed}")
        numbers = tuple(_number(field.name, each, allowed, whole=False) for each in value)
        if field.metadata.get("interval") and not numbers[0] < numbers[1]:
            raise ParameterError(field.name, value, "a lower and a greater upper bound")
        return numbers
    return _number(field.name, value, allowed, whole=isinstance(default, int))


def _number(name: str, value: Any, allowed: str, *, whole: bool) -> float | int:
    wanted = f"{'a whole number' if whole else 'a number'}, {allowed}"
    if isinstance(value, bool) or not hasattr(value, "__float__") or not math.isfinite(float(value)):
        raise ParameterError(name, value, wanted)
    if not _ALLOWED[allowed](float(value)) or (whole and float(value) != int(value)):
        raise ParameterError(name, value, wanted)
    return int(value) if whole else float(value)
