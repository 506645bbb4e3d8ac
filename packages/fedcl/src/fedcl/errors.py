"""What can go wrong in a federation, each named for what the user must look at."""

from __future__ import annotations

from core_utils.errors import UserError


class ConfigError(UserError):
    """A setting outside its range, or settings that exclude each other."""


class ScenarioError(UserError):
    """Tasks, orders or partitions that the data cannot give."""


class QuorumError(UserError):
    """Too few clients answered for too many rounds; what was finished is kept."""


class DeployError(UserError):
    """A SuperLink or SuperNode that did not start, join or answer; the message holds its log's path and last lines."""
