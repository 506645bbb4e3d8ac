"""Explicit Euler integration of linear decay."""

import core_utils
from dynsparse.integration import StepError, integrate

if core_utils.CONTRACT != 1:
    raise ImportError("dynsparse needs core-utils with contract 1")

__all__ = ["StepError", "integrate"]
