"""What a network must know of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core_utils.errors import UserError


@dataclass(frozen=True)
class DatasetSpec:
    """Channels, size and classes.

    Attributes:
        in_channels: of an image or frame; 2 for polarities of events.
        size: height and width, pixels; one number for squares.
        num_classes: labels are 0 to num_classes - 1.

    Raises:
        UserError: a number below 1.
    """

    in_channels: int
    size: int | tuple[int, int]
    num_classes: int

    def __post_init__(self) -> None:
        for name, value in (
            ("in_channels", self.in_channels),
            ("size", min(self.shape)),
            ("classes", self.num_classes),
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])

    @classmethod
    def of(cls, images: Any, labels: Any) -> DatasetSpec:
        """The spec of arrays or tensors: images [n, C, H, W] or frames [n, T, C, H, W], and integer labels [n]."""
        if images.ndim not in (4, 5):
            raise UserError(f"images are [n, C, H, W] and frames [n, T, C, H, W], got shape {list(images.shape)}")
        if len(images) == 0 or len(images) != len(labels) or int(labels.min()) < 0:
            raise UserError(
                f"{len(images)} images and {len(labels)} labels must be as many, above 0, and none negative"
            )
        channels, height, width = (int(side) for side in images.shape[-3:])
        return cls(channels, height if height == width else (height, width), int(labels.max()) + 1)
