"""Checks which way imports run, for every package that lies in `packages/`.

import-linter has no pattern for "each package", so its contracts are written here and thrown away after the check.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = "core_utils"

# Top to bottom: a layer imports only what stands below it. `|` keeps neighbours apart, `:` lets them meet.
CORE_LAYERS = (
    "__main__",
    "cli",
    "report",
    "document",
    "page",
    "claims | bench | training | spiking",
    "images | jobs",
    "runs | data",
    "figures : files : interrupts : jsonable : lazy : memory : settings : states : user_code",
    "errors",
)
FACES = ("cli", "claims")


def main() -> None:
    """Runs import-linter over all packages; shows its findings only when a contract is broken."""
    sources = {path.name: path for path in sorted(ROOT.glob("packages/*/src/*")) if (path / "__init__.py").is_file()}
    sections = [section("importlinter", {"root_packages": list(sources)})]
    for contract in contracts(sources):
        sections.append(section(f"importlinter:contract:{len(sections)}", contract))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "importlinter.ini")
        config.write_text("\n".join(sections))
        path = os.pathsep.join(str(source.parent) for source in sources.values())
        checked = subprocess.run(
            [Path(sys.executable).with_name("lint-imports"), "--no-cache", config],
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if checked.returncode:
        sys.exit(checked.stdout)
    print(f"{len(sections) - 1} import contracts kept")


def contracts(sources: dict[str, Path]) -> Iterator[dict[str, str | list[str]]]:
    """The contracts in import-linter's own words."""
    papers = [name for name in sources if name != CORE]
    yield {
        "name": "core_utils stands on its own layers",
        "type": "layers",
        "containers": CORE,
        "layers": [optional(layer) for layer in CORE_LAYERS],
        "exhaustive": "true",
        "exhaustive_ignores": "embedded",
    }
    if papers:
        yield {
            "name": "core_utils imports no paper",
            "type": "forbidden",
            "source_modules": CORE,
            "forbidden_modules": papers,
        }
        yield {"name": "papers are independent", "type": "independence", "modules": papers}
    for paper in papers:
        method = [module for module in modules(sources[paper]) if module not in FACES]
        yield {
            "name": f"{paper}: the command line and the claims stand on the method",
            "type": "layers",
            "containers": paper,
            "layers": [optional(layer) for layer in ("__main__", " | ".join(FACES), " : ".join(method))],
        }


def modules(package: Path) -> list[str]:
    """The package's own modules and subpackages, by name."""
    entries = sorted(path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file())
    return [path.stem for path in entries if not path.stem.startswith("__")]


def optional(layer: str) -> str:
    """The layer with each module in brackets: import-linter's mark for one that may be missing."""
    return " ".join(word if word in "|:" else f"({word})" for word in layer.split())


def section(title: str, options: dict[str, str | list[str]]) -> str:
    """One section of an INI file; the items of a list stand on lines of their own."""
    values = {key: value if isinstance(value, str) else "\n    ".join(["", *value]) for key, value in options.items()}
    return "\n".join([f"[{title}]", *(f"{key} = {value}" for key, value in values.items()), ""])


if __name__ == "__main__":
    main()
