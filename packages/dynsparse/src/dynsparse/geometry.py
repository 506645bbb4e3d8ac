"""How a convolution walks over its input, and what has to be padded beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dynsparse.errors import ConfigError, check_choice

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Geometry(NamedTuple):
    """One entry for each spatial axis, and the number of groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def per_axis(name: str, value: int | Sequence[int], axes: int, *, least: int) -> tuple[int, ...]:
    """The value for every axis.

    Raises:
        ConfigError: another number of values, or one below `least`.
    """
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(values) != axes or min(values) < least:
        raise ConfigError(f"{name} takes {axes} numbers, each at least {least}; got {value}")
    return values


def padding_beforehand(
    padding: str | tuple[int, ...],
    mode: str,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits the padding into what the convolution itself does and what comes before it.

    Args:
        padding: "valid", "same", or what both sides of each axis get.
        mode: one of `PADDING_MODES`; a convolution itself pads zeros only, and both sides alike.
        kernel_size: for each axis.
        stride: likewise.
        dilation: likewise.

    Returns:
        The convolution's padding for each axis; and both sides of each axis, last axis first as torch's `pad` has it,
        empty if nothing is to be done beforehand.

    Raises:
        ConfigError: another word, or "same" with a stride.
    """
    if isinstance(padding, str):
        check_choice("padding", padding, ("valid", "same"))
        if padding == "same" and max(stride) > 1:
            raise ConfigError(f"padding='same' takes a stride of 1; got {stride}")
        reach = (step * (size - 1) for step, size in zip(dilation, kernel_size, strict=True))
        totals = [width if padding == "same" else 0 for width in reach]
    else:
        totals = [2 * side for side in padding]
    if mode == "zeros" and not any(total % 2 for total in totals):
        return tuple(total // 2 for total in totals), ()
    if not any(totals):
        return (0,) * len(totals), ()
    sides = tuple(side for total in reversed(totals) for side in (total // 2, total - total // 2))
    return (0,) * len(totals), sides
