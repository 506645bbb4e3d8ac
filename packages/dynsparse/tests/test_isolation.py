"""The package stands on core-utils and its own dependencies alone."""

import importlib.metadata
import subprocess
import sys

import dynsparse


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in dynsparse.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"dynsparse"}


def test_the_names_are_there_before_torch_is():
    command = "import sys, dynsparse; dir(dynsparse); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False, timeout=60).returncode == 0
