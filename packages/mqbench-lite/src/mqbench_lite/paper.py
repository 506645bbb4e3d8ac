"""Figures of the paper's authors that could be read and confirmed; where there is none, nothing is shown.

All are top-1 on ImageNet in percent. The paper's own tables of training by algorithm and hardware could not be verified
and are not here.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "benchmark page of the authors' toolkit"


@dataclass(frozen=True)
class Published:
    """One published figure.

    Attributes:
        accuracy: top-1, percent.
        source: where it stands.
    """

    accuracy: float
    source: str


NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "regnet_x_600mf", "regnet_x_800mf")
FLOAT = dict(zip(NETWORKS, (71.06, 77.94, 72.68, 73.60, 74.83), strict=True))
"""Of the official weights, from the same page."""

_PTQ = {
    # algorithm or ranges, profile, weight and activation bits: one figure for each network
    ("minmax", "academic", 8, 8): (70.93, 77.67, 72.51, 73.48, 74.85),
    ("mse", "academic", 8, 8): (70.88, 77.89, 72.55, 73.61, 74.83),
    ("minmax", "academic", 4, 8): (52.25, 73.50, 24.76, 60.37, 57.25),
    ("mse", "academic", 4, 8): (54.96, 72.60, 27.03, 62.30, 57.93),
    ("adaround", "academic", 4, 8): (70.35, 76.87, 71.82, 72.32, 73.58),
    ("minmax", "tensorrt", 8, 8): (70.33, 76.72, 72.50, 73.28, 74.75),
    ("mse", "tensorrt", 8, 8): (70.55, 77.79, 72.56, 73.41, 74.70),
}
_QUOTED = {
    ("mobilenet_v2", "lsq", "academic", 4, 4): Published(70.6, "the paper's figure as a user of the toolkit quotes it")
}


def published(network: str, algorithm: str, profile: str, weight_bits: int, act_bits: int) -> Published | None:
    """The published figure of a point of the benchmark, or None.

    Args:
        network: torchvision's name.
        algorithm: `adaround`, `lsq`, or for plain ranges `minmax` or `mse`.
        profile: of the hardware.
        weight_bits: of weights.
        act_bits: of activations.
    """
    quoted = _QUOTED.get((network, algorithm, profile, weight_bits, act_bits))
    row = _PTQ.get((algorithm, profile, weight_bits, act_bits))
    if quoted is None and row is not None and network in NETWORKS:
        return Published(row[NETWORKS.index(network)], SOURCE)
    return quoted
