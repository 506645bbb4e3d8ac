"""Adds a working package to the workspace: `new_package.py heat-flow --description "Heat flows downhill"`.

tools/template/ is that package under the name new-paper; lint checks it as it stands.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "tools" / "template"
DESCRIPTION = "A paper as a method, a job and a set of claims"


def main() -> None:
    """Copies the template under the new name and makes it a member of the workspace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="lower case, words joined by hyphens")
    parser.add_argument("--description", default=DESCRIPTION, help="one line without quotation marks")
    arguments = parser.parse_args()
    package = ROOT / "packages" / arguments.name
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", arguments.name):
        parser.error(f"{arguments.name!r} is not lower-case words joined by hyphens")
    if not re.fullmatch(r'[^"\\\n]+', arguments.description):
        parser.error("the description must be one line without quotation marks or backslashes")
    if package.exists():
        parser.error(f"{package.relative_to(ROOT)} exists")
    write_package(package, arguments.description)
    join_workspace(arguments.name)
    tidy(package)
    print(f'{package.relative_to(ROOT)} is ready: nox -s lint "test({arguments.name})"')


def write_package(package: Path, description: str) -> None:
    """Writes every file of the template with the new name in path and text."""
    names = {"new-paper": package.name, "new_paper": package.name.replace("-", "_"), DESCRIPTION: description}
    for source in sorted(TEMPLATE.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            target = package / renamed(str(source.relative_to(TEMPLATE)), names)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(source.read_text(), names))
    shutil.copy(ROOT / "LICENSE", package)


def renamed(text: str, names: dict[str, str]) -> str:
    """The text with every old name replaced by its new one."""
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def join_workspace(name: str) -> None:
    """Adds the package to the sources of the root pyproject.toml, in alphabetical order."""
    project = ROOT / "pyproject.toml"
    before, header, after = project.read_text().partition("[tool.uv.sources]\n")
    sources, blank, rest = after.partition("\n\n")
    lines = sorted({*sources.splitlines(), f"{name} = {{ workspace = true }}"})
    project.write_text(before + header + "\n".join(lines) + blank + rest)


def tidy(package: Path) -> None:
    """Sorts imports and wraps lines anew: both depend on the name."""
    ruff = ("uv", "tool", "run", "--quiet", "--constraints", "constraints.txt", "ruff")
    for task in (("check", "--select", "I", "--fix", "--quiet"), ("format", "--quiet")):
        subprocess.run([*ruff, *task, package], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
