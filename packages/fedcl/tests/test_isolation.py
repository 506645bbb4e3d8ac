"""The package stands on core-utils and its own dependencies alone."""

import importlib.metadata
import subprocess
import sys

import fedcl


def test_nothing_else_of_this_repository_is_importable():
    assert "site-packages" in fedcl.__file__
    assert {entry.name for entry in importlib.metadata.entry_points(group="core_utils.claims")} == {"fedcl"}


def test_importing_the_package_or_asking_for_help_loads_no_framework():
    script = (
        "import sys, fedcl, fedcl.cli; sys.argv = ['fedcl', '--help']\n"
        "try: fedcl.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'matplotlib', 'sklearn', 'torchvision', 'timm'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
