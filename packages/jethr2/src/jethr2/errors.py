"""What users can get wrong; each message is one line that names the field, file or option and what would be right."""

from __future__ import annotations

from core_utils.errors import UserError


class JetHR2Error(UserError, ValueError):
    """Any bad input to this package; a ValueError whose text is one line."""


class ParameterError(JetHR2Error):
    """A parameter's value means nothing.

    Attributes:
        field: name of the parameter.
        value: that was given.
        allowed: what would be right.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} must be {allowed}, got {value!r}")
        self.field, self.value, self.allowed = field, value, allowed


class ModelError(JetHR2Error):
    """A robot model cannot be read, or lacks what is needed; the message names the file and the site, joint or link."""


class ReachError(JetHR2Error):
    """A leg cannot reach a point.

    Attributes:
        distance: from the hip to the ankle that the point asks for, m.
        limit: what the leg can reach, m.
    """

    def __init__(self, distance: float, limit: float) -> None:
        super().__init__(f"the ankle would be {distance:.4f} m from the hip, and the leg reaches {limit:.4f} m")
        self.distance, self.limit = distance, limit


class SimulationDiverged(JetHR2Error):  # noqa: N818 -- the specification's name
    """A simulation holds numbers that are not finite.

    Attributes:
        time: of the first one, s.
    """

    def __init__(self, time: float) -> None:
        super().__init__(f"the simulation diverged at {time:.3f} s")
        self.time = time


class InfeasibleThrust(UserWarning):
    """The thrust is not more than the weight: the robot cannot lift."""
