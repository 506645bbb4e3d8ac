"""Checks, in an environment with all wheels of a folder, that every program answers, also when one paper is gone: `check_removal.py dist`.

Plain pip takes each paper away and puts it back.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

CORE = "core-utils"
ASKED = """
import contextlib, importlib.util, io, sys
from importlib.metadata import entry_points

gone, *names = sys.argv[1:]
if importlib.util.find_spec(gone.replace("-", "_")):
    sys.exit(f"pip left a part of {gone} behind")
for name in names:
    (program,) = entry_points(group="console_scripts", name=name)
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        code = program.load()()
    if code != 0 or name not in text.getvalue():
        sys.exit(f"{name} --help ends with {code}")
"""
"""One process for all programs: what takes their time is Python's start."""


def main() -> None:
    """Exits with a message that names the first package that another one misses."""
    wheels = {wheel.name.partition("-")[0].replace("_", "-"): wheel for wheel in Path(sys.argv[1]).glob("*.whl")}
    for name in wheels:
        done = subprocess.run([program(name), "--help"], capture_output=True, text=True, timeout=60)
        if done.returncode != 0 or name not in done.stdout:
            sys.exit(f"{name} --help fails: {done.stderr}")
    for name in sorted(set(wheels) - {CORE}):
        others = [other for other in wheels if other != name]
        if needy := [other for other in others if name in required(other)]:
            sys.exit(f"{needy[0]} requires {name}: papers must not depend on each other")
        pip("uninstall", "--yes", name)
        if program(name).exists():
            sys.exit(f"pip left the program {name} behind")
        asked = subprocess.run(
            [sys.executable, "-c", ASKED, name, *others], capture_output=True, text=True, timeout=120
        )
        if asked.returncode != 0:
            sys.exit(f"without {name}: {asked.stderr}")
        pip("install", "--no-deps", "--no-index", str(wheels[name]))


def program(name: str) -> Path:
    """Where a package's program lies."""
    return Path(sys.executable).with_name(name)


def pip(*words: str) -> None:
    """Runs this environment's pip."""
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True)


def required(name: str) -> set[str]:
    """What a package may ask for, with all its extras."""
    lines = importlib.metadata.requires(name) or []
    return {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower().replace("_", "-") for line in lines}


if __name__ == "__main__":
    main()
