"""Compiles constraints.txt anew: one universal pin for everything that a package, extra or group may install."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Runs uv in the root, so that the file holds neither a host nor a path of this machine."""
    projects = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("packages/*/pyproject.toml"))
    flags = ["--universal", "--python-version=3.11", "--no-emit-index-url", "--no-header", "--no-annotate", "--upgrade"]
    for project in ["pyproject.toml", *projects]:
        groups = tomllib.loads((ROOT / project).read_text()).get("dependency-groups", {})
        flags += [f"--group={project}:{group}" for group in groups]
    flags += [f"--no-emit-package={Path(project).parent.name}" for project in projects]
    subprocess.run(
        [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--all-extras",
            *flags,
            *projects,
            "tools/pins.in",
            "-o",
            "constraints.txt",
        ],
        cwd=ROOT,
        check=True,
    )


if __name__ == "__main__":
    main()
