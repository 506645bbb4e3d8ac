"""The package stands on core-utils and its own dependencies alone, and starts light."""

import importlib.metadata
import subprocess
import sys

import pytest

import snn_tet


def modules_after(statement):
    code = f"{statement}; import sys; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in snn_tet.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"snn-tet"}


@pytest.mark.parametrize("module", ["snn_tet", "snn_tet.claims", "snn_tet.cli"])
def test_importing_loads_no_framework(module):
    assert not {"torch", "numba", "matplotlib", "lightning_fabric"} & set(modules_after(f"import {module}"))


def test_every_public_name_exists():
    assert all(getattr(snn_tet, name).__module__.startswith(("snn_tet.", "core_utils.")) for name in snn_tet.__all__)
    assert dir(snn_tet) == snn_tet.__all__
    with pytest.raises(AttributeError, match="no attribute 'TET'"):
        snn_tet.TET  # noqa: B018
