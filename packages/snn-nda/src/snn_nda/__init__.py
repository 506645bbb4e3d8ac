"""Explicit Euler integration of linear decay."""

import core_utils
from snn_nda.integration import StepError, integrate

if core_utils.CONTRACT != 1:
    raise ImportError("snn-nda needs core-utils with contract 1")

__all__ = ["StepError", "integrate"]
