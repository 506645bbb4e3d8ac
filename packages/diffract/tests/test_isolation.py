"""The package stands on core-utils and its own dependencies alone."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import diffract

HEAVY = ("jax", "flax", "optax", "scipy", "matplotlib", "sklearn", "torch")


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in diffract.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"diffract"}


def test_torch_is_not_needed():
    assert importlib.util.find_spec("torch") is None


def test_importing_and_asking_for_help_load_no_framework():
    code = "import sys, diffract, diffract.cli, diffract.claims\nsys.argv = ['diffract', *sys.argv[1:]]\n"
    code += "if sys.argv[1:]:\n    try:\n        diffract.cli.main()\n    except SystemExit:\n        pass\n"
    code += f"assert not set({HEAVY}) & set(sys.modules), set({HEAVY}) & set(sys.modules)"
    for words in ((), ("train", "--help")):
        subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, timeout=60)


def test_every_public_name_exists():
    for name in diffract.__all__:
        assert getattr(diffract, name) is not None
    assert set(dir(diffract)) == set(diffract.__all__)
