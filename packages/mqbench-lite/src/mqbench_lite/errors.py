"""What can go wrong by the user's hand, in the words of quantisation."""

from __future__ import annotations

from core_utils.errors import UserError


class MQBenchError(UserError):
    """Any bad input to this package; a ValueError whose text is one line."""


class ProfileError(MQBenchError):
    """A scheme that the profile's engine cannot run, or a profile that cannot be read; the message names the field."""


class TraceError(MQBenchError):
    """A model that cannot be captured as a graph; the message names the node and its source line."""

    def __init__(self, node: str, hint: str) -> None:
        super().__init__(f"the model cannot be captured at {node}", hint)


class UnsupportedOpError(MQBenchError):
    """An operation that a profile or a file format has no place for."""

    def __init__(self, op: str, profile: str, hint: str | None = None) -> None:
        super().__init__(f"{op} has no place in {profile}", hint)


class CalibrationError(MQBenchError):
    """Calibration data that gives no range; the message names the tensor and the batch."""

    def __init__(self, tensor: str, batch: int, problem: str) -> None:
        super().__init__(f"calibration of {tensor} failed at batch {batch}: {problem}")


class NotCalibratedError(MQBenchError):
    """A step that needs ranges was asked for before, or amid, calibration."""


class TrainingError(MQBenchError):
    """Training data or settings that cannot be used, or training that left the finite numbers."""


class ExportError(MQBenchError):
    """A quantised model that cannot be written in the format asked for, or a file that cannot be read."""


class EngineMissingError(MQBenchError):
    """An engine that is not installed."""

    def __init__(self, engine: str, extra: str) -> None:
        super().__init__(f"the engine {engine} is not installed", f"install mqbench-lite[{extra}]")


class AgreementError(MQBenchError):
    """An engine whose outputs leave the bound that was promised."""

    def __init__(self, max_lsb: float, layer: str) -> None:
        super().__init__(f"the engine is off by up to {max_lsb:g} steps, first at {layer}")
