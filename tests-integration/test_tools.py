"""The maintainers' checks refuse what they are there to refuse."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
SIGNS = {"reproduced": "✓", "refuted": "✗", "inconclusive": "?"}


@pytest.fixture
def repository(tmp_path):
    """A git repository with the tools and one package, `fedcl`, ready for release 1.0.0."""
    package = tmp_path / "packages" / "fedcl"
    package.mkdir(parents=True)
    (package / "pyproject.toml").write_text('[project]\nname = "fedcl"\nversion = "1.0.0"\n')
    (package / "CHANGELOG.md").write_text("# Changelog\n\n## 1.0.0\n\nFirst release.\n")
    shutil.copytree(TOOLS, tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def test_the_tools_pass_their_own_check(repository):
    assert tool(repository, "check_hygiene.py") == (0, "")


# Spelled in parts, so that this file passes the check that it tests.
@pytest.mark.parametrize("trace", [f"files.{'python'}hosted.org", f"PY{'PI'}.org/simple", f"registry.{'npm'}js.org"])
def test_a_registry_host_in_a_committed_file_is_named_with_its_line(repository, trace):
    (repository / "notes.md").write_text(f"first\nsee https://{trace}\n")
    assert tool(repository, "check_hygiene.py") == (0, "")
    git(repository, "add", ".")
    code, complaint = tool(repository, "check_hygiene.py")
    assert code == 1
    assert complaint.startswith("notes.md:2: a package registry's host")


@pytest.mark.parametrize("folder", ["home/ann", "root", "work", "Users/ann"])
def test_a_path_of_one_machine_is_refused(repository, folder):
    (repository / "settings.toml").write_text(f'data = "/{folder}/data"\n')
    git(repository, "add", ".")
    assert "settings.toml:1: an absolute path of one machine" in tool(repository, "check_hygiene.py")[1]


def test_a_release_needs_version_changelog_and_a_clean_tree(repository):
    (repository / "notes.md").touch()
    code, complaint = tool(repository, "release.py", "fedcl", "1.1.0")
    assert code == 1
    assert "says 1.0.0, not 1.1.0" in complaint
    assert "CHANGELOG.md has no section '## 1.1.0'" in complaint
    assert "not committed" in complaint


def test_a_tag_on_another_commit_stops_the_release(repository):
    git(repository, "tag", "fedcl-v1.0.0")
    (repository / "notes.md").touch()
    commit(repository)
    assert tool(repository, "release.py", "fedcl", "1.0.0") == (
        1,
        "no release: the tag fedcl-v1.0.0 names another commit\n",
    )


def test_nothing_is_uploaded_without_its_tag(repository):
    code, complaint = tool(repository, "release.py", "fedcl", "1.0.0", "--upload")
    assert code == 1
    assert complaint.startswith("no release: there is no tag fedcl-v1.0.0, and what is uploaded cannot be taken back\n")


def test_a_name_that_belongs_to_others_is_never_uploaded(repository):
    git(repository, "tag", "fedcl-v1.0.0")
    code, complaint = tool(repository, "release.py", "fedcl", "1.0.0", "--upload")
    assert code == 1
    assert complaint == "no release: fedcl is another project's name on the public index; never upload it\n"


def tool(repository, name, *words):
    done = subprocess.run(
        [sys.executable, repository / "tools" / name, *words], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def commit(repository):
    git(repository, "add", ".")
    git(repository, "-c", "user.name=Ann", "-c", "user.email=ann@example.org", "commit", "--quiet", "-m", "Change")


def git(repository, *words):
    subprocess.run(["git", *words], cwd=repository, check=True, capture_output=True, text=True)


def test_every_test_that_guards_an_untrusted_source_is_there():
    text = (TOOLS.parent / "SECURITY.md").read_text()
    named = re.findall(r"`(\S+\.py)::(test_\w+)`", text)
    assert len(named) > 40
    for file, test in named:
        folder = TOOLS.parent if file.startswith("tests-integration/") else TOOLS.parent / "packages"
        assert f"\ndef {test}(" in (folder / file).read_text(), f"{file}::{test}"


def test_the_first_table_counts_the_verdicts_of_the_second():
    lines = (TOOLS.parent / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    short = {match[1]: row[3] for row in rows if (match := re.match(r"\[`(\S+)`\]", row[0]))}
    names = {row[0] for row in rows if row[-1] in ("reproduced", "refuted", "inconclusive")}
    assert short.keys() == names
    for name, cell in short.items():
        counted = [sum(row[0] == name and row[-1] == kind for row in rows) for kind in SIGNS]
        assert cell == " · ".join(f"{count} {SIGNS[kind]}" for kind, count in zip(SIGNS, counted, strict=True) if count)
