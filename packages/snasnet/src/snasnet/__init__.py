"""Explicit Euler integration of linear decay."""

import core_utils
from snasnet.integration import StepError, integrate

if core_utils.CONTRACT != 1:
    raise ImportError("snasnet needs core-utils with contract 1")

__all__ = ["StepError", "integrate"]
