"""Checks that no committed text names a package registry's host or a folder of one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each pattern is spelled so that it does not match itself.
TRACES = {
    "a package registry's host": re.compile(
        r"(?:py[p]i|python[h]osted|npm[j]s|pypi[-]mirror|rubygems|conda\.anaconda|crates|ghcr)\.(?:org|com|io)"
        r"|registry\.(?:npm[j]s|yarn[p]kg)|(?:deb|security|ftp|snapshot)(?:\.[a-z]{2})?\.deb[i]an\.org"
        r"|(?:archive|security|ports)\.ub[u]ntu\.com|download\.py[t]orch\.org|pypi\.(?:python|nvidia)\.",
        re.IGNORECASE,
    ),
    "an absolute path of one machine": re.compile(
        r"(?<![A-Za-z0-9_.])(?:/(?:root|work)/|/(?:home|Users)/[A-Za-z0-9._-]+/)|[A-Z]:\\Users\\"
    ),
}


def main() -> None:
    """Names every line that holds such a trace, and fails if there is one."""
    found = [trace for name in tracked() for trace in traces(name)]
    sys.exit("\n".join(found) or None)


def tracked() -> list[str]:
    """Committed files, as paths under the root."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def traces(name: str) -> list[str]:
    """The lines of one file that name a host or a folder; none for a binary file."""
    content = (ROOT / name).read_bytes()
    if b"\0" in content[:8000]:  # as git tells binary from text
        return []
    lines = content.decode(errors="replace").splitlines()
    return [
        f"{name}:{number}: {what}: {line.strip()[:160]}"
        for number, line in enumerate(lines, start=1)
        for what, pattern in TRACES.items()
        if pattern.search(line)
    ]


if __name__ == "__main__":
    main()
