"""The template tool, from a clone to a package that passes what every package must pass."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAME = "a-flow"  # sorts before core_utils, which the template's own name does not


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The workspace with core-utils alone, so that neither torch nor another paper's state matters."""
    folder = tmp_path_factory.mktemp("clone")
    for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if name.startswith("packages/core-utils/") or not name.startswith(("packages/", "tests-integration/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    return folder


@pytest.fixture(scope="module")
def generated(clone):
    run(clone, "tools/new_package.py", NAME, "--description", "Heat flows downhill")
    git(clone, "add", ".")
    return clone / "packages" / NAME


def test_the_description_and_the_names_are_the_new_ones(generated):
    text = "".join(file.read_text() for file in generated.rglob("*") if file.is_file())
    assert "Heat flows downhill" in text
    assert "new-paper" not in text
    assert "new_paper" not in text


@pytest.mark.usefixtures("generated")
def test_a_generated_package_passes_lint(clone):
    assert "Session lint was successful" in run(clone, "-m", "nox", "-s", "lint")


@pytest.mark.usefixtures("generated")
def test_a_generated_package_passes_its_isolated_tests(clone):
    output = run(clone, "-m", "nox", "-s", f"test({NAME})")
    passed, failed, skipped = (int(part.split()[0]) for part in output.strip().splitlines()[-1].split(", "))
    assert passed > 10
    assert failed == skipped == 0


@pytest.mark.usefixtures("generated")
def test_lint_refuses_a_paper_that_imports_another(clone):
    run(clone, "tools/new_package.py", "second-paper")
    method = clone / "packages" / "second-paper" / "src" / "second_paper" / "integration.py"
    method.write_text(f"import a_flow\n{method.read_text()}")
    output = run(clone, "tools/import_contracts.py", python=clone / ".nox" / "lint" / "bin" / "python", fails=True)
    assert "papers are independent BROKEN" in output
    assert "second_paper.integration -> a_flow" in output


def git(folder, *words):
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def run(folder, *words, python=sys.executable, fails=False):
    """What a Python program in the clone prints, stdout last; it must end as expected."""
    done = subprocess.run([python, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    output = done.stderr + done.stdout
    assert (done.returncode != 0) == fails, output
    return output
