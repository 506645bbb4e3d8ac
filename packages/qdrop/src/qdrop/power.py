"""A power that loops over arrays vectorise: the mathematical library's would be called for one element after another."""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

LN2 = np.log(2)
EXP = tuple(LN2**k / float(np.prod(np.arange(1.0, k + 1))) for k in range(13))
LOG = tuple(2 / LN2 / (2 * k + 1) for k in range(10))
SQRT_HALF = np.sqrt(0.5).view(np.int64)
ONE = np.float64(1).view(np.int64)


@numba.njit(fastmath={"contract"}, error_model="numpy")
@no_type_check
def power(x, p):
    """x^p for x >= 0 to 1e-13, as 2^(p log2 x): series in the mantissa, whole powers of two by bits."""
    bits = np.float64(x).view(np.int64)
    exponent = (bits - SQRT_HALF) >> 52
    mantissa = np.int64(bits - (exponent << 52)).view(np.float64)  # in [sqrt(1/2), sqrt(2))
    t = (mantissa - 1) / (mantissa + 1)
    square = t * t
    series = LOG[9]
    for k in range(8, -1, -1):
        series = series * square + LOG[k]
    y = p * (exponent + t * series)
    whole = np.rint(y)
    fraction = y - whole
    result = EXP[12]
    for k in range(11, -1, -1):
        result = result * fraction + EXP[k]
    two_to_whole = np.int64((np.int64(whole) << 52) + ONE).view(np.float64)
    return result * two_to_whole if x > 0 else 0.0
