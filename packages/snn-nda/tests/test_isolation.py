"""The package stands on core-utils and its own dependencies alone, and what needs no torch loads none."""

import importlib.metadata
import subprocess
import sys

import pytest

import snn_nda

WITHOUT_TORCH = ("adapters", "events", "eventdrop", "folders", "labels", "params", "policies", "synthetic")


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in snn_nda.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"snn-nda"}


@pytest.mark.parametrize("names", ["snn_nda", ", ".join(f"snn_nda.{name}" for name in WITHOUT_TORCH)])
def test_importing_loads_no_framework(names):
    code = f"import {names}; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numba", "matplotlib", "lightning_fabric", "PIL"} & set(loaded)


def test_every_public_name_exists():
    assert all(getattr(snn_nda, name).__module__.startswith("snn_nda.") for name in snn_nda.__all__)
    assert dir(snn_nda) == sorted(snn_nda.__all__)
    with pytest.raises(AttributeError, match="no attribute 'NDa'"):
        snn_nda.NDa  # noqa: B018
