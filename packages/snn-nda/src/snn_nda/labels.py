"""Whether a mirrored recording keeps its label, and other facts about the published data sets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from snn_nda.errors import FlipError, PolicyError
from snn_nda.params import nearest_name
from snn_nda.policies import Policy


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What has to be known about a data set.

    Attributes:
        sensor_size: (width, height), pixels.
        label_safe_flip: a mirrored recording has the same label.
        label_map: what labels become when mirrored, where some do; others stay.
    """

    sensor_size: tuple[int, int]
    label_safe_flip: bool
    label_map: Mapping[int, int] = field(default_factory=dict)


_GESTURE_MIRROR = {1: 2, 2: 1, 3: 6, 6: 3, 4: 5, 5: 4}
"""From 0: wave of the right hand (1) and left (2); right arm clockwise (3) and anticlockwise (4), left arm likewise
(5, 6). A mirror swaps the arms and the sense of turning. Clap, arm roll, drums, guitar and other (0, 7 to 10) stay."""

FACTS: Mapping[str, DataFacts] = {
    "cifar10-dvs": DataFacts(sensor_size=(128, 128), label_safe_flip=True),
    "n-caltech101": DataFacts(sensor_size=(240, 180), label_safe_flip=True),
    "n-cars": DataFacts(sensor_size=(120, 100), label_safe_flip=True),
    "n-mnist": DataFacts(sensor_size=(34, 34), label_safe_flip=False),
    "dvs-gesture": DataFacts(sensor_size=(128, 128), label_safe_flip=False, label_map=_GESTURE_MIRROR),
    "fashion-mnist": DataFacts(sensor_size=(28, 28), label_safe_flip=True),
    "digits": DataFacts(sensor_size=(24, 24), label_safe_flip=False),
}
"""The data sets by name; widths and heights of N-Caltech101 and N-Cars are those of the largest recordings."""


def facts(name: str) -> DataFacts:
    """The facts about a data set.

    Raises:
        PolicyError: it is not one of `FACTS`.
    """
    if name not in FACTS:
        raise PolicyError(
            f"data set {name!r} is unknown", f"did you mean {nearest_name(name, FACTS)!r}? There are {', '.join(FACTS)}"
        )
    return FACTS[name]


def checked_label_map(policy: Policy, dataset: object, unsafe: Literal["error", "warn"] = "error") -> Mapping[int, int]:
    """What labels become when a sample is mirrored, if the policy may mirror this data set.

    Args:
        policy: what will be drawn.
        dataset: anything with `label_safe_flip`, and `label_map` where it has one.
        unsafe: what a mirror that changes the meaning of labels is: an error, or only worth a warning.

    Returns:
        Old label to new; empty where all stay.

    Raises:
        FlipError: the policy mirrors, but the data set does not say that it may be.

    Warns:
        UserWarning: the same, with `unsafe="warn"`.
    """
    label_map: Mapping[int, int] = getattr(dataset, "label_map", {})
    if not policy.flip or getattr(dataset, "label_safe_flip", None) is True or label_map:
        return label_map
    says = "does not say whether" if getattr(dataset, "label_safe_flip", None) is None else "says that not"
    message = f"the policy mirrors, but {type(dataset).__name__} {says} a mirrored sample keeps its label"
    if unsafe == "error":
        raise FlipError(message, "set flip to 0, give a label_map, or label_safe_flip=True if it does")
    warnings.warn(message, stacklevel=2)
    return label_map
