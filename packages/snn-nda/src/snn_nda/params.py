"""What is done to one sample, spelled out: geometric operations with their numbers, in the order they are applied.

The same parameters move frames (`snn_nda.nda.NDA`) and events (`snn_nda.events.EventNDA`); as JSON data they can be
kept with a run and applied again.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from core_utils.errors import UserError
from core_utils.settings import from_tree
from snn_nda.errors import PolicyError


@dataclass(frozen=True, kw_only=True)
class HFlip:
    """Mirrors left to right.

    Attributes:
        swap_polarity: darker becomes brighter and the other way round, as when the mirrored scene moves as before.
    """

    name: ClassVar[str] = "hflip"
    swap_polarity: bool = False


@dataclass(frozen=True, kw_only=True)
class Roll:
    """Shifts by whole pixels.

    Attributes:
        dy: down, pixels.
        dx: right, pixels.
        wrap: what leaves on one side comes in on the other; else nothing comes in.
    """

    name: ClassVar[str] = "roll"
    dy: int = 0
    dx: int = 0
    wrap: bool = True


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """Turns about the centre.

    Attributes:
        degrees: anticlockwise, as torchvision has it.
    """

    name: ClassVar[str] = "rotate"
    degrees: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.degrees):
            raise PolicyError(f"degrees must be finite, got {self.degrees}")


@dataclass(frozen=True, kw_only=True)
class ShearX:
    """Shears along x about the centre.

    Attributes:
        degrees: positive moves what lies below the centre left, as torchvision has it; in (-90, 90).
    """

    name: ClassVar[str] = "shear"
    degrees: float = 0.0

    def __post_init__(self) -> None:
        if not -90 < self.degrees < 90:
            raise PolicyError(f"degrees of a shear must lie in (-90, 90), got {self.degrees}")


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Empties a square, clipped at the borders.

    Attributes:
        y: row of the centre, pixels.
        x: column of the centre, pixels.
        length: side, pixels.
    """

    name: ClassVar[str] = "cutout"
    y: int
    x: int
    length: int

    def __post_init__(self) -> None:
        if self.length < 0:
            raise PolicyError(f"length must not be negative, got {self.length}")

    def rows(self) -> tuple[int, int]:
        """First row and the one after the last, not clipped."""
        return self.y - self.length // 2, self.y - self.length // 2 + self.length

    def columns(self) -> tuple[int, int]:
        """First column and the one after the last, not clipped."""
        return self.x - self.length // 2, self.x - self.length // 2 + self.length


Operation = HFlip | Roll | Rotate | ShearX | Cutout

OPERATIONS: Mapping[str, type[Operation]] = {kind.name: kind for kind in (HFlip, Roll, Rotate, ShearX, Cutout)}
"""Every operation by its name."""


@dataclass(frozen=True)
class Params:
    """The operations of one sample, the same for all its time steps and both polarities.

    Attributes:
        operations: in the order they are applied.
    """

    operations: tuple[Operation, ...] = ()

    @property
    def flipped(self) -> bool:
        """Whether the sample ends up mirrored, so that its label may change."""
        return sum(isinstance(operation, HFlip) for operation in self.operations) % 2 == 1

    def to_json(self) -> list[dict[str, Any]]:
        """The operations as JSON data."""
        return [{"name": operation.name, **dataclasses.asdict(operation)} for operation in self.operations]

    @classmethod
    def from_json(cls, data: Iterable[Mapping[str, Any]]) -> Params:
        """What `to_json` gave.

        Raises:
            PolicyError: an operation without a name, or of an unknown one.
            UserError: a number that is missing, unknown or of another type; the message names the operation.
        """
        return cls(tuple(_operation(index, dict(each)) for index, each in enumerate(data)))


def inverse_matrix(operation: Rotate | ShearX) -> tuple[float, float, float, float]:
    """From a place in the result to its place before a rotation or shear, both (y, x) from the centre, row by row."""
    if isinstance(operation, Rotate):
        angle = math.radians(operation.degrees)
        return math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    return 1.0, 0.0, math.tan(math.radians(operation.degrees)), 1.0


def nearest_name(name: str, names: Iterable[str]) -> str:
    """The known name that is most like an unknown one, for messages."""
    return difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)[0]


def _operation(index: int, data: dict[str, Any]) -> Operation:
    name = data.pop("name", None)
    if name not in OPERATIONS:
        raise PolicyError(
            f"operation {index} has the unknown name {name!r}", f"did you mean {nearest_name(str(name), OPERATIONS)!r}?"
        )
    missing = [
        field.name for field in dataclasses.fields(OPERATIONS[name]) if _required(field) and field.name not in data
    ]
    if missing:
        raise UserError(f"operation {index} ({name}) lacks {', '.join(missing)}")
    return from_tree(OPERATIONS[name], data, f"operation {index} ({name})")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING
