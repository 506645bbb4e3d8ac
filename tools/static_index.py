"""Writes a static package index, `simple/`, beside the wheels of a folder: `static_index.py dist`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

PAGE = "<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>\n{links}\n</body></html>\n"


def main() -> None:
    """Writes one page per project and one that lists them; links are relative, so the folder can be served anywhere."""
    folder = Path(sys.argv[1])
    projects: dict[str, list[str]] = {}
    for wheel in sorted(folder.glob("*.whl")):
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        name = wheel.name.partition("-")[0].replace("_", "-")
        projects.setdefault(name, []).append(f'<a href="../../{wheel.name}#sha256={digest}">{wheel.name}</a><br>')
    for name, links in projects.items():
        write(folder / "simple" / name, name, links)
    write(folder / "simple", "packages", [f'<a href="{name}/">{name}</a><br>' for name in projects])


def write(folder: Path, title: str, links: list[str]) -> None:
    """Writes one page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(PAGE.format(title=title, links="\n".join(links)))


if __name__ == "__main__":
    main()
