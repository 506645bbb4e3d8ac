"""The package stands on core-utils and its own dependencies alone."""

import importlib.metadata
import subprocess
import sys

import imagenet_s


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in imagenet_s.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} <= {"imagenet-s"}


def test_importing_the_package_loads_no_framework():
    code = "import sys, imagenet_s; sys.exit(any(name in sys.modules for name in ('torch', 'cv2', 'PIL', 'av')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
