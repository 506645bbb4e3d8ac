"""Explicit Euler integration of linear decay."""

import core_utils
from new_paper.integration import StepError, integrate

if core_utils.CONTRACT != 1:
    raise ImportError("new-paper needs core-utils with contract 1")

__all__ = ["StepError", "integrate"]
