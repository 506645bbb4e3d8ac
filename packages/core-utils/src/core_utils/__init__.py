"""The thin ground that ten executable papers share: claims, runs, jobs, data, reports and a command line.

Every idea is a module of its own (`core_utils.claims`, `core_utils.runs`, ...); importing this package loads none of them.
"""

CONTRACT = 1
"""Version of the contracts in this package; packages of the workspace check it before they rely on them."""

__all__ = ["CONTRACT"]
