"""What every package promises, checked side by side in one environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from core_utils import claims

ROOT = Path(__file__).parents[1]
NAMES = sorted(project.parent.name for project in ROOT.glob("packages/*/pyproject.toml"))
PAPERS = [name for name in NAMES if name != "core-utils"]
FRAMEWORKS = {"distributed", "jax", "lightning_fabric", "matplotlib", "mujoco", "numba", "sklearn", "torch"}
PROGRAM = """
import sys
from importlib.metadata import entry_points

(program,) = entry_points(group="console_scripts", name=sys.argv[0])
code = program.load()()
print("loaded", *sys.modules)
sys.exit(code)
"""


def program(name, *words):
    """A package's program in a process of its own; its last line of output names the modules that it loaded."""
    code = f"import sys; sys.argv = {[name, *words]}\n{PROGRAM}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_every_package_offers_its_claims_under_its_own_name():
    packages = claims.discover()
    assert [package.name for package in packages] == PAPERS
    assert {package.name: package.error for package in packages if package.error} == {}
    for package in packages:
        ids = [claim.id for claim in package.claims]
        assert ids
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_help_answers_before_any_framework_is_loaded(name):
    done = program(name, "--help")
    assert done.returncode == 0, done.stderr
    help_text, _, loaded = done.stdout.rpartition("loaded")
    assert name in help_text
    assert FRAMEWORKS & set(loaded.split()) == set()


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("verb", ["reproduce", "bench"])
def test_every_paper_has_the_shared_verbs(name, verb):
    assert program(name, verb, "--help").returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_bad_usage_is_one_line_and_exit_code_2(name):
    done = program(name, "no-such-verb")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1
