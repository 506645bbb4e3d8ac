"""Checks that this environment holds the wheels of a folder, byte for byte: `check_installed.py dist core-utils qdrop`.

The public index has a stranger's core-utils; a name and a version prove nothing.
"""

from __future__ import annotations

import importlib.metadata
import sys
import zipfile
from pathlib import Path


def main() -> None:
    """Exits with a message that names the first distribution that is not ours."""
    folder, *names = sys.argv[1:]
    for name in names:
        (wheel,) = Path(folder).glob(f"{name.replace('-', '_')}-*.whl")
        if difference := first_difference(wheel, name):
            sys.exit(f"the installed {name} is not {wheel.name}: {difference} differs or is missing")


def first_difference(wheel: Path, name: str) -> str | None:
    """A file of the wheel that is not installed as it is there; RECORD is the installer's own."""
    installed = importlib.metadata.distribution(name)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            target = Path(str(installed.locate_file(member)))
            if not member.endswith("/RECORD") and not (
                target.is_file() and target.read_bytes() == archive.read(member)
            ):
                return member
    return None


if __name__ == "__main__":
    main()
