"""Every check, build and run of this repository; `nox --list` names them.

Packages are found in `packages/`. Sessions install built wheels by path, never by name from an index: some of our
names belong to other people's projects there.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "test", "oldest", "integration", "wheels"]

ROOT = Path(__file__).parent
CORE = "core-utils"
NAMES = sorted(project.parent.name for project in ROOT.glob("packages/*/pyproject.toml"))
PAPERS = [name for name in NAMES if name != CORE]
DIST = ROOT / "dist"
GRACE = 60.0  # s that a program has to save after Ctrl-C; nox itself would kill it after half a second
# The oldest engine that a package supports, where the next one broke with it, and the tests that meet the engine.
OLDEST = {
    "jethr2": (
        "mujoco==3.17.0",
        "engines or environments or foreign or linearisation or model_folder or rendering or robot or simulation or urdf",
    )
}
TWO = ("--numprocesses=2",)  # the cores that CI has
PINNED = ("-c", "constraints.txt", "--no-sources")
# Containers like to set this; each of the tests' many processes would then compile torch's sources anew, for ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
scratch_folder = tempfile.TemporaryDirectory(prefix="nox-", ignore_cleanup_errors=True)
SCRATCH = Path(scratch_folder.name)
built: dict[str, str] = {}


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style, types, import contracts, workflows, spelling, and no trace of one machine in a committed file."""
    session.install("--exact", "--group", "pyproject.toml:lint", *PINNED)
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")
    session.run("mypy", "noxfile.py", "tools", *(f"packages/{name}/src" for name in NAMES))
    session.run("python", "tools/import_contracts.py")
    session.run("python", "tools/check_hygiene.py")
    session.run("zizmor", "--offline", "--quiet", ".github")
    session.log("codespell over every committed file")
    session.run("codespell", *subprocess.check_output(["git", "ls-files"], text=True).splitlines(), log=False)


@nox.session
@nox.parametrize("package", NAMES, ids=NAMES)
def test(session: nox.Session, package: str) -> None:
    """A package's tests against its installed wheel, beside core-utils and nothing else of this repository."""
    install(session, package, group="test")
    if package != CORE:
        run_tests(session, package)
        return
    run_tests(session, package, bare=True)
    install(session, package, group="test-all")
    run_tests(session, package, "-m", "not slow and not bare")


@nox.session
@nox.parametrize("package", list(OLDEST), ids=list(OLDEST))
def oldest(session: nox.Session, package: str) -> None:
    """A package's tests of its engine with the oldest one that it supports; everything else is pinned as ever."""
    pin, chosen = OLDEST[package]
    engine = pin.partition("==")[0]
    others = [line for line in Path("constraints.txt").read_text().splitlines() if not line.startswith(f"{engine}==")]
    pins = SCRATCH / f"oldest-{package}.txt"
    pins.write_text("\n".join([*others, pin]))
    wheels = wheel(session, CORE), wheel(session, package)
    session.install("--exact", *wheels, *group_of(package, "test"), "-c", str(pins), "--no-sources")
    run_tests(session, package, "-k", chosen)


@nox.session
@nox.parametrize("package", NAMES, ids=NAMES)
def slow(session: nox.Session, package: str) -> None:
    """A package's tests that take minutes."""
    install(session, package, group="test-all" if package == CORE else "test")
    run_tests(session, package, "-m", "slow")


@nox.session
def integration(session: nox.Session) -> None:
    """What only shows when packages meet, and whether the template yields a package that passes."""
    install_all(session, "--group", "pyproject.toml:integration")
    # A module's tests share what they make, so a module stays with one process.
    run_pytest(session, ROOT / "tests-integration", *TWO, "--dist=loadfile", threads="1")


@nox.session
def demo(session: nox.Session) -> None:
    """All claims of all packages into report/index.html; arguments go to `core-utils report`.

    The ratios on the page are those of the last `nox -s bench`.
    """
    timed = ("--benchmarks", "runs") if list(ROOT.glob("runs/bench-*")) else ()
    begin = time.monotonic()
    install_all(session)
    session.log(f"installed in {time.monotonic() - begin:.0f} s, downloads included")
    begin = time.monotonic()
    words = ("report", "--out", "report", "--workers", "2", *timed, *session.posargs)
    session.run("core-utils", *words, interrupt_timeout=GRACE)
    session.log(f"ran in {time.monotonic() - begin:.0f} s")


@nox.session
@nox.parametrize("package", PAPERS, ids=PAPERS)
def bench(session: nox.Session, package: str) -> None:
    """A package timed against its peers; arguments go to its `bench` command."""
    install(session, package, group="bench")
    out = () if "--out" in session.posargs else ("--out", f"runs/bench-{package}")
    session.run(package, "bench", *out, *session.posargs, interrupt_timeout=GRACE)


@nox.session
def wheels(session: nox.Session) -> None:
    """Wheels, a static index and hash-pinned requirements in dist/, proved by installations."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    for name in NAMES:
        shutil.copy(wheel(session, name), DIST)
    session.run("python", "tools/static_index.py", DIST)
    index = ("--index", (DIST / "simple").as_uri())
    locked = {name: lock(session, name, *index) for name in NAMES}
    # pip copies where uv links (a minute and 6 GB for torch), so one package speaks for all, while the others are proved.
    heavy = [name for name in NAMES if "\ntorch==" in locked[name].read_text()]
    chosen = next(iter(heavy), CORE)
    with ThreadPoolExecutor() as threads:
        copied = threads.submit(prove, session, chosen, "pip", "--require-hashes", "-r", locked[chosen])
        for name in NAMES:
            prove(session, name, "uv", "--require-hashes", "-r", locked[name])
        prove_together(session)
        copied.result()


def wheel(session: nox.Session, package: str) -> str:
    """The package's wheel, built once per call of nox."""
    if package not in built:
        folder = SCRATCH / "wheels" / package
        session.run("uv", "build", "--wheel", "--no-sources", "--quiet", "--out-dir", folder, f"packages/{package}")
        (built[package],) = map(str, folder.glob("*.whl"))
    return built[package]


def install(session: nox.Session, package: str, *, group: str) -> None:
    """Makes the environment hold core-utils, the package and its dependency group, and nothing else."""
    own = [] if package == CORE else [wheel(session, package)]
    session.install("--exact", wheel(session, CORE), *own, *group_of(package, group), *PINNED)


def install_all(session: nox.Session, *also: str) -> None:
    """Makes the environment hold every package, what its claims need beyond that (group `demo`), and the report."""
    groups = [argument for package in PAPERS for argument in group_of(package, "demo")]
    papers = [wheel(session, package) for package in PAPERS]
    session.install("--exact", f"{wheel(session, CORE)}[report]", *papers, *groups, *also, *PINNED)


def group_of(package: str, group: str) -> list[str]:
    """Arguments that install a dependency group where the package has it."""
    project = f"packages/{package}/pyproject.toml"
    return ["--group", f"{project}:{group}"] if group in groups_of(package) else []


def groups_of(package: str) -> dict[str, list[object]]:
    """The package's dependency groups by name."""
    groups: dict[str, list[object]] = nox.project.load_toml(f"packages/{package}/pyproject.toml").get(
        "dependency-groups", {}
    )
    return groups


def run_tests(session: nox.Session, package: str, *flags: str, bare: bool = False) -> None:
    """Runs a package's tests with the shapes and types of core-utils and its own checked.

    In the bare environment of core-utils its tests assert that no framework can be imported.
    """
    checked = dict.fromkeys(["core_utils", package.replace("-", "_"), "beartype.beartype"])
    tests = ROOT / "packages" / package / "tests"
    # Hypothesis' profile for CI draws the same examples everywhere and sets no deadline, which a busy machine would miss.
    settings = (f"--jaxtyping-packages={','.join(checked)}", "--hypothesis-profile=ci")
    # Packages whose tests take minutes have the plugin in their group.
    shared = TWO if "pytest-xdist" in str(groups_of(package).get("test")) else ()
    run_pytest(session, tests, *settings, *shared, *flags, bare=bare, threads="1" if shared else None)


def run_pytest(session: nox.Session, tests: Path, *flags: str, bare: bool = False, threads: str | None = None) -> None:
    """Runs pytest from an empty directory, so that only what is installed can be imported."""
    counts = f"--junitxml={SCRATCH / 'junit' / session.name}{'-bare' if bare else ''}.xml"
    settings = ("-c", ROOT / "pyproject.toml", "--rootdir", tests.parent, "-p", "no:cacheprovider", counts)
    env = {"PYTHONPATH": None, "CORE_UTILS_BARE": "1" if bare else None, "OMP_NUM_THREADS": threads}
    none_selected = 5
    codes = (0, none_selected) if "slow" in flags else (0,)
    with tempfile.TemporaryDirectory(prefix="empty-") as empty, session.chdir(empty):
        session.run("pytest", *settings, *flags, tests, *session.posargs, env=env, success_codes=codes)


def lock(session: nox.Session, package: str, *index: str) -> Path:
    """Writes the package's requirements with the hash of every file, ours included."""
    requirements = DIST / f"requirements-{package}.txt"
    name = SCRATCH / f"{package}.in"
    name.write_text(package)
    flags = ("--universal", "--python-version=3.11", "--generate-hashes", "--no-header", "--no-annotate", "--quiet")
    session.run("uv", "pip", "compile", *flags, *index, *PINNED, "-o", requirements, name, silent=True)
    # pip and uv read this line relative to the file; that is how both find the wheels beside it.
    requirements.write_text(f"--find-links .\n{requirements.read_text()}")
    return requirements


def prove(session: nox.Session, package: str, installer: str, *arguments: str | Path) -> None:
    """Installs into a clean environment; our wheels must be what arrived, and the command must answer."""
    # Not in the system's temporary folder: uv links only within one file system, and 6 GB need room.
    with tempfile.TemporaryDirectory(dir=session.virtualenv.location, prefix="clean-") as folder:
        seed = ["--seed"] if installer == "pip" else []
        session.run("uv", "venv", "--quiet", *seed, "--python", session.virtualenv.location, folder)
        python, command = Path(folder, "bin", "python"), Path(folder, "bin", package)
        pip = ("uv", "pip", "install", "--python", python) if installer == "uv" else (python, "-m", "pip", "install")
        session.run(*pip, "--quiet", *arguments, external=True)
        session.run(python, "tools/check_installed.py", DIST, CORE, package, external=True)
        session.run(command, "--help", silent=True, external=True)


def prove_together(session: nox.Session) -> None:
    """All our wheels in one environment by plain pip, from the index alone; each paper leaves without harm to others.

    What they need comes by uv beforehand, which links 6 GB where pip would copy them.
    """
    with tempfile.TemporaryDirectory(dir=session.virtualenv.location, prefix="clean-") as folder:
        session.run("uv", "venv", "--quiet", "--seed", "--python", session.virtualenv.location, folder)
        python, index = Path(folder, "bin", "python"), (DIST / "simple").as_uri()
        uv, pip = ("uv", "pip"), (python, "-m", "pip", "--isolated")
        session.run(*uv, "install", "--python", python, "--quiet", "--index", index, *PINNED, *NAMES)
        session.run(*uv, "uninstall", "--python", python, "--quiet", *NAMES)
        alone = {"PIP_CONFIG_FILE": os.devnull}  # whose further indexes would be asked, too
        session.run(*pip, "install", "--quiet", "--no-deps", "--index-url", index, *NAMES, external=True, env=alone)
        session.run(*pip, "check", external=True)
        session.run(python, "tools/check_installed.py", DIST, *NAMES, external=True)
        session.run(python, "tools/check_removal.py", DIST, external=True)


@atexit.register
def print_counts() -> None:
    """Closes a call of nox with the tests of all its sessions, summed."""
    suites = [suite for file in SCRATCH.glob("junit/*.xml") for suite in ET.parse(file).iter("testsuite")]
    keys = {"tests": ["tests"], "failed": ["failures", "errors"], "skipped": ["skipped"]}
    total = {name: sum(int(suite.get(key, 0)) for suite in suites for key in keys[name]) for name in keys}
    if suites:
        passed = total["tests"] - total["failed"] - total["skipped"]
        print(f"{passed} passed, {total['failed']} failed, {total['skipped']} skipped", flush=True)
