"""The built-in surrogates as numbers, for kernels that cannot call Python."""

import math

from core_utils.spiking.surrogates import Surrogate, atan, rectangle, sigmoid, triangle


def constants(surrogate: Surrogate) -> tuple[str, float, float] | None:
    """The name of a built-in surrogate and the constants a and b of its formula, or None for a user's own.

    With d = u - threshold:

        triangle    max(0, a - |d|) b
        rectangle   b where |d| < a, else 0
        atan        b / (1 + (a d)^2)
        sigmoid     b p (1 - p) with p = 1 / (1 + exp(-a d))
    """
    match surrogate:
        case triangle(gamma) if type(surrogate) is triangle:  # a subclass may compute something else
            return "triangle", gamma, 1 / gamma**2
        case rectangle(width) if type(surrogate) is rectangle:
            return "rectangle", width / 2, 1 / width
        case atan(alpha) if type(surrogate) is atan:
            return "atan", math.pi / 2 * alpha, alpha / 2
        case sigmoid(alpha) if type(surrogate) is sigmoid:
            return "sigmoid", alpha, alpha
    return None
