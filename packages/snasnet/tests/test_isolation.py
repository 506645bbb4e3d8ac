"""The package stands on core-utils and its own dependencies alone."""

import importlib.metadata

import snasnet


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in snasnet.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"snasnet"}
