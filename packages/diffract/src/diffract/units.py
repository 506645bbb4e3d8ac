"""Lengths as people write them: `0.75 mm`, `4 lambda`."""

from __future__ import annotations

import math
import re

from diffract.errors import ConfigError

Length = str | float | int
"""Text with a unit, or metres."""

_UNITS = {"nm": 1e-9, "um": 1e-6, "µm": 1e-6, "μm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}
_FORM = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-zµμλ]*)\s*")


def metres(name: str, value: Length, wavelength: float | None = None, *, zero: bool = False) -> float:
    """A length in metres.

    Args:
        name: of the setting, for messages.
        value: a number of metres, or text with a unit: nm, um, mm, cm, m, or lambda for wavelengths in vacuum.
        wavelength: m; None where no wavelength is known yet.
        zero: whether 0 is allowed, with or without a unit.

    Raises:
        ConfigError: no number, no unit, an unknown unit, not positive.
    """
    if isinstance(value, str):
        match = _FORM.fullmatch(value)
        if match is None:
            raise ConfigError(f"{name} is no length: {value!r}", "write it as '0.75 mm' or '4 lambda'")
        number, unit = float(match[1]), match[2].replace("λ", "lambda")
        if unit == "lambda" and wavelength is not None:
            number *= wavelength
        elif unit in _UNITS:
            number *= _UNITS[unit]
        elif unit or number:
            what = f"has the unknown unit {unit!r}" if unit else "has no unit"
            known = ", ".join(_UNITS) + (", lambda" if wavelength is not None else "")
            raise ConfigError(f"{name} {what}: {value!r}", f"known: {known}")
    else:
        number = float(value)
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ConfigError(f"{name} must be {'at least 0' if zero else 'positive'} and finite, got {value!r}")
    return number
