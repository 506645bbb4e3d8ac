"""What users can get wrong here."""

from core_utils.errors import UserError


class ConfigError(UserError):
    """A setting that is missing, out of range or in another unit; the message names it."""


class ShapeError(UserError):
    """Arrays whose shapes do not belong together; the message names both."""


class SamplingError(UserError):
    """A propagation that the grid cannot represent."""


class SamplingWarning(UserWarning):
    """A propagation that the grid represents with a visible error."""
