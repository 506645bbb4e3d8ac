"""Builds a release after checking that it may be one: `release.py qdrop 1.2.0 [--upload]`.

A release is the wheels, the static index and the hash-pinned requirements of `nox -s wheels`, attached to the page of
the tag `<package>-v<version>` by .github/workflows/release.yml. `--upload` also hands the package's wheel to the
public index, with the credentials that uv finds.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOREIGN = ("core-utils", "diffract", "fedcl")
"""Names that belong to other people's projects on the public index."""


def main() -> None:
    """Names every reason against the release, or builds it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("version", help="X.Y.Z")
    parser.add_argument("--upload", action="store_true", help="also upload the wheel to the public index")
    arguments = parser.parse_args()
    problems = obstacles(arguments.package, arguments.version, upload=arguments.upload)
    if problems:
        sys.exit("\n".join(f"no release: {problem}" for problem in problems))
    subprocess.run(["nox", "-s", "wheels"], cwd=ROOT, check=True)
    if arguments.upload:
        wheels = (ROOT / "dist").glob(f"{arguments.package.replace('-', '_')}-{arguments.version}-*.whl")
        subprocess.run(["uv", "publish", *wheels], check=True)


def obstacles(package: str, version: str, *, upload: bool) -> list[str]:
    """What speaks against releasing this version from this checkout."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return [f"{version} is not of the form X.Y.Z"]
    project = ROOT / "packages" / package / "pyproject.toml"
    if not project.is_file():
        return [f"there is no package {package}"]
    declared = tomllib.loads(project.read_text())["project"]["version"]
    changelog = project.with_name("CHANGELOG.md")
    sections = re.findall(r"^## (\S+)", changelog.read_text() if changelog.is_file() else "", re.MULTILINE)
    tag = f"{package}-v{version}"
    anywhere, here = git("tag", "--list", tag), git("tag", "--list", tag, "--points-at", "HEAD")
    problems = {
        f"{project.relative_to(ROOT)} says {declared}, not {version}": declared != version,
        f"{changelog.relative_to(ROOT)} has no section '## {version}'": version not in sections,
        "the working tree has changes that are not committed": git("status", "--porcelain") != "",
        f"the tag {tag} names another commit": anywhere != here,
        f"there is no tag {tag}, and what is uploaded cannot be taken back": upload and not anywhere,
        f"{package} is another project's name on the public index; never upload it": upload and package in FOREIGN,
    }
    return [problem for problem, stands in problems.items() if stands]


def git(*words: str) -> str:
    """What git says about this checkout."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
