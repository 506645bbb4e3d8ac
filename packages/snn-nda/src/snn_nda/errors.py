"""What can be wrong with frames, events, parameters and policies."""

from core_utils.errors import UserError


class FramesError(UserError):
    """Frames or labels of a shape or type that an operation does not take."""


class EventsError(UserError):
    """Events without their fields or outside their sensor, or a data set that does not hold any."""


class PolicyError(UserError):
    """A policy, an operation or a parameter that does not exist or lies outside its range."""


class FlipError(UserError):
    """Mirroring would change what a label means."""
