"""The package stands on core-utils and its own dependencies alone."""

import importlib.metadata
import importlib.util

import fedcl


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in fedcl.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"fedcl"}


def test_torch_is_not_needed():
    assert importlib.util.find_spec("torch") is None
