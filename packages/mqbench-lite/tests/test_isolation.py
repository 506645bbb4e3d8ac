"""The package stands on core-utils and its own dependencies alone."""

import importlib.metadata
import subprocess
import sys

import mqbench_lite


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in mqbench_lite.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"mqbench-lite"}


def test_importing_the_package_loads_no_framework():
    heavy = ("torch", "numba", "onnx", "onnxruntime", "openvino")
    code = f"import sys, mqbench_lite; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
