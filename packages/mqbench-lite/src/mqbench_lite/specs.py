"""What a quantiser is asked to do, and what a device asks of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mqbench_lite.errors import ProfileError

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """The grid of one kind of tensor.

    Attributes:
        bits: width of a code, 2 to 8.
        symmetric: whether the zero point is 0.
        per_channel: a step size for each output channel; weights only.
        signed: whether the grid has negative codes; `auto` has them if the calibration data has negative values.
        pot_scale: step sizes are powers of two.
        narrow_range: the grid leaves out its most negative code, so that it is symmetric.
        reduce_range: one bit less than `bits`, for hosts whose 8-bit products saturate.
    """

    bits: int = 8
    symmetric: bool = True
    per_channel: bool = False
    signed: bool | Literal["auto"] = True
    pot_scale: bool = False
    narrow_range: bool = False
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ProfileError(f"bits is {self.bits}", f"give {MIN_BITS} to {MAX_BITS}")
        if self.narrow_range and not self.symmetric:
            raise ProfileError("narrow_range needs a symmetric grid", "set symmetric or leave narrow_range out")

    def grid(self, *, signed: bool | None = None) -> tuple[int, int]:
        """The least and the greatest code.

        Args:
            signed: the sign that calibration decided, for a grid whose sign is `auto`.

        Raises:
            ProfileError: the sign is `auto` and none was given.
        """
        if self.signed != "auto":
            signed = self.signed
        if signed is None:
            raise ProfileError("the grid's sign is decided by calibration data", "calibrate first")
        width = self.bits - 1 if self.reduce_range else self.bits
        if not signed:
            return 0, 2**width - 1
        return -(2 ** (width - 1)) + self.narrow_range, 2 ** (width - 1) - 1


@dataclass(frozen=True, kw_only=True)
class HardwareProfile:
    """What a device and its library demand of a quantised graph.

    Attributes:
        name: unique name.
        weight: the grid of weights.
        act: the grid of activations.
        graph: the rule that places quantisers, 1 to 3: inputs of layers only; also one side of additions; every tensor.
        fold_bn: whether batch normalisation is folded into the layer before it.
        bias: `int32` rounds biases to multiples of the product of the two step sizes; `float` leaves them.
        edge_bits: width of the weights and inputs of the first and the last layer.
        relu_fusion: whether a layer and the ReLU after it are one unit.
        concat: `shared` gives all inputs of a concatenation its output's grid; `requant` quantises them apart.
        pool_keeps: whether an average pool's output keeps its input's grid instead of getting its own.
        storage: how activations' codes are stored in files.
        rounding: of codes.
        engine: the engine that runs its files, or None.
        executable: whether an engine here can run it; the others are exported only.
        source: where the scheme comes from.
    """

    name: str
    weight: QuantSpec
    act: QuantSpec
    graph: Literal[1, 2, 3] = 3
    fold_bn: bool = True
    bias: Literal["int32", "float"] = "int32"
    edge_bits: int | None = 8
    relu_fusion: bool = True
    concat: Literal["shared", "requant"] = "requant"
    pool_keeps: bool = False
    storage: Literal["u8", "s8"] = "u8"
    rounding: Literal["half_even"] = "half_even"
    engine: str | None = None
    executable: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        if self.act.per_channel:
            raise ProfileError(f"profile {self.name}: activations are quantised per tensor", "unset act.per_channel")
        if self.graph not in (1, 2, 3):
            raise ProfileError(f"profile {self.name}: graph is {self.graph}", "give 1, 2 or 3")
