"""Checks, in an environment with all wheels of a folder, that every program answers, also when one paper is gone: `check_removal.py dist`.

Plain pip takes each paper away and puts it back.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CORE = "core-utils"
CORES = 2


def main() -> None:
    """Exits with a message that names the first package that another one misses."""
    wheels = {wheel.name.partition("-")[0].replace("_", "-"): wheel for wheel in Path(sys.argv[1]).glob("*.whl")}
    answer(list(wheels), "with all packages")
    for name in sorted(set(wheels) - {CORE}):
        others = [other for other in wheels if other != name]
        if needs := [other for other in others if name in required(other)]:
            sys.exit(f"{needs[0]} requires {name}: papers must not depend on each other")
        pip("uninstall", "--yes", name)
        left = subprocess.run([sys.executable, "-c", f"import {name.replace('-', '_')}"], stderr=subprocess.DEVNULL)
        if left.returncode == 0 or program(name).exists():
            sys.exit(f"pip left a part of {name} behind")
        answer(others, f"without {name}")
        pip("install", "--no-deps", "--no-index", str(wheels[name]))


def answer(names: list[str], when: str) -> None:
    """Asks programs for their help."""
    with ThreadPoolExecutor(CORES) as pool:
        for name, done in zip(names, pool.map(ask, names), strict=True):
            if done.returncode != 0 or name not in done.stdout:
                sys.exit(f"{name} --help fails {when}: {done.stderr}")


def ask(name: str) -> subprocess.CompletedProcess[str]:
    """What a program says to `--help`."""
    return subprocess.run([program(name), "--help"], capture_output=True, text=True, timeout=60)


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
