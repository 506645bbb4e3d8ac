"""What can go wrong by the user's hand, in the words of quantisation."""

from core_utils.errors import UserError


class QDropError(UserError):
    """Any bad input to this package; a ValueError whose text is one line."""


class ConfigError(QDropError):
    """A setting is out of range; the message names the field."""


class PlanError(QDropError):
    """A model cannot be quantised as asked; the message names the module."""


class CalibrationError(QDropError):
    """The calibration data cannot be used; the message names the batch."""


class ReconstructionError(QDropError):
    """A unit could not be reconstructed; the message names the unit."""


class ExportError(QDropError):
    """A quantised model cannot be written in the format asked for, or the file disagrees with the model."""
