"""A real deployment on this machine: SuperLink and SuperNodes as processes on loopback, with TLS and node keys."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from fedcl.deploy.app import write_app
from fedcl.deploy.keys import make_certificates, make_node_key
from fedcl.errors import DeployError
from fedcl.job import JobConfig

HOST = "127.0.0.1"
QUIET_ENV = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
MARK = "FEDCL_DEPLOYMENT"
"""Environment variable that tells a deployment's processes."""
LAST_LINES = 12
"""Of a process's log that an error shows."""


@dataclass
class Processes:
    """Processes of a deployment, each the head of a group of its own, whose members are ended with it.

    Attributes:
        logs: folder of their output.
        env: of all of them.
        mark: in the environment of each, and so of all that they start.
    """

    logs: Path
    env: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _files: list[IO[bytes]] = field(default_factory=list)

    def start(self, name: str, *words: str | Path) -> None:
        """Starts a program of Flower's; its output goes to `<name>.log`."""
        self.logs.mkdir(parents=True, exist_ok=True)
        log = (self.logs / f"{name}.log").open("ab")
        self._files.append(log)
        self.running[name] = subprocess.Popen(
            [program(str(words[0])), *map(str, words[1:])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**self.env, MARK: self.mark},
            start_new_session=True,
        )

    def check(self) -> None:
        """Sees that all of them still run.

        Raises:
            DeployError: one has ended; shows the end of its log.
        """
        for name, process in self.running.items():
            if process.poll() is not None:
                raise self.failure(f"{name} ended with code {process.returncode}", name)

    def failure(self, what: str, name: str) -> DeployError:
        """An error with the path and the last lines of a log."""
        log = self.logs / f"{name}.log"
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if log.is_file() else []
        return DeployError(f"{what}; {log} ends: {' | '.join(line.strip() for line in lines if line.strip())}")

    def stop(self, seconds: float = 20.0) -> list[str]:
        """Ends nodes first, then the rest, gently and then not; gives the names of those that had to be killed.

        Some of Flower's children leave their group; they are known by the mark in their environment, and ended too.
        """
        killed: list[str] = []
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if sign == signal.SIGKILL:
                killed = [name for name, process in self.running.items() if process.poll() is None]
            for process in reversed(self.running.values()):
                if any(True for _ in group_members(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, sign)
            if sign != signal.SIGINT:
                for member in self.alive():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(member, sign)
            end = time.monotonic() + (seconds if sign != signal.SIGKILL else 5.0)
            while time.monotonic() < end and self.alive():
                for process in self.running.values():
                    process.poll()
                time.sleep(0.1)
        for process in self.running.values():
            process.wait(timeout=10)
        for file in self._files:
            file.close()
        return killed

    def alive(self) -> list[int]:
        """Processes of this deployment: members of its groups, and whatever carries its mark."""
        grouped = {member for process in self.running.values() for member in group_members(process.pid)}
        return sorted(grouped | set(marked(self.mark)))


@dataclass(frozen=True)
class Summary:
    """What a deployment came to.

    Attributes:
        result: of the run's folder.
        seconds: from start to end by phase.
        killed: processes that did not end when asked to.
    """

    result: dict[str, Any]
    seconds: dict[str, float]
    killed: list[str]


def deploy_local(
    folder: Path, config: JobConfig, *, nodes: int, tls: bool = True, limit: float = 600.0, say: Any = None
) -> Summary:
    """Runs a federation through a SuperLink and SuperNodes on loopback, and ends all of them.

    Args:
        folder: a new one: keys, logs, Flower's state, the app, and the run under `run/`.
        config: clients are set to `nodes`.
        nodes: how many SuperNodes.
        tls: encrypt, and admit only nodes whose keys are registered; without it everything is open on loopback.
        limit: seconds for the whole.
        say: called with lines of progress.

    Raises:
        DeployError: something did not start, join or finish in time; shows the end of its log.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DeployError(f"{folder} is not empty", "name a new folder")
    folder = folder.resolve()
    config = replace(config, scenario=replace(config.scenario, clients=nodes))
    say, started, seconds = say or (lambda _: None), time.monotonic(), dict[str, float]()
    port, *node_ports = free_ports(1 + nodes)
    write_app(folder / "app", config, out=folder / "run", join_seconds=limit, round_seconds=limit)
    home = folder / "flwr"
    home.mkdir(parents=True)
    certificates = make_certificates(folder / "keys") if tls else None
    secure = f'root-certificates = "{certificates.authority}"' if certificates else "insecure = true"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "{HOST}:{port}"\n{secure}\n'
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {**os.environ, **QUIET_ENV, "FLWR_HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"}
    processes = Processes(folder / "logs", env)
    finished = False
    try:
        flags: list[str | Path] = ["--host", HOST, "--port", str(port), "--database", folder / "state.db"]
        if certificates:
            flags += ["--ssl-ca-certfile", certificates.authority, "--ssl-certfile", certificates.certificate]
            flags += ["--ssl-keyfile", certificates.key, "--enable-supernode-auth"]
        else:
            flags += ["--insecure"]
        processes.start("superlink", "flower-superlink", *flags, "--disable-runtime-dependency-installation")
        context = ssl.create_default_context(cafile=str(certificates.authority)) if certificates else None
        _wait_ready(processes, f"{'https' if tls else 'http'}://{HOST}:{port}/health", context, started + limit)
        seconds["superlink ready"] = time.monotonic() - started
        say(f"SuperLink ready after {seconds['superlink ready']:.0f} s")
        for index, own in enumerate(node_ports):
            words: list[str | Path] = ["--superlink", f"{HOST}:{port}", "--host", HOST, "--port", str(own)]
            words += ["--node-config", f"partition-id={index} num-partitions={nodes}"]
            if certificates:
                private, public = make_node_key(folder / "keys", f"node{index}")
                _flwr(processes, "supernode", "register", public, "local")
                words += ["--root-certificates", certificates.authority, "--auth-supernode-private-key", private]
            else:
                words += ["--insecure"]
            processes.start(f"supernode{index}", "flower-supernode", *words)
        said = _flwr(processes, "run", folder / "app", "local")
        seconds["submitted"] = time.monotonic() - started
        found = re.search(r"\b(\d{6,})\b", said)
        say(f"run {found.group(1) if found else ''} submitted")
        _wait_finished(processes, folder / "run" / "result.json", started + limit, found and found.group(1))
        seconds["finished"] = time.monotonic() - started
        finished = True
    finally:
        killed = processes.stop()
        if finished:
            say(f"all processes ended{f', {killed} by force' if killed else ''}")
    seconds["stopped"] = time.monotonic() - started
    return Summary(json.loads((folder / "run" / "result.json").read_bytes()), seconds, killed)


def program(name: str) -> str:
    """The path of one of Flower's programs, beside this Python or on the PATH.

    Raises:
        DeployError: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise DeployError(f"{name} is not installed", "install fedcl[flwr]")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, found by binding all of them at once."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def group_members(group: int) -> Iterator[int]:
    """Processes of a group that are not zombies."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, _, own, *_ = (entry / "stat").read_text().rpartition(") ")[2].split()
                if int(own) == group and state != "Z":
                    yield int(entry.name)


def marked(mark: str) -> Iterator[int]:
    """Processes, no zombies, whose environment holds a deployment's mark."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def _flwr(processes: Processes, *words: str | Path) -> str:
    done = subprocess.run(
        [program("flwr"), *map(str, words)],
        capture_output=True,
        text=True,
        env={**processes.env, "COLUMNS": "250"},  # narrower tables cut words short
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = done.stdout + done.stderr
    with (processes.logs / "flwr.log").open("a") as log:
        log.write(said)
    if done.returncode:
        raise processes.failure(f"flwr {words[0]} failed", "flwr")
    return said


def _wait_ready(processes: Processes, url: str, context: ssl.SSLContext | None, end: float) -> None:
    while time.monotonic() < end:
        processes.check()
        try:
            with urllib.request.urlopen(url, timeout=5, context=context):  # noqa: S310 -- loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise processes.failure("the SuperLink was not ready in time", "superlink")


def _wait_finished(processes: Processes, result: Path, end: float, run: str | None) -> None:
    checked = time.monotonic()
    while not result.is_file():
        processes.check()
        if time.monotonic() > end:
            raise processes.failure("the federation did not finish in time", "superlink")
        if run is not None and time.monotonic() - checked > 15:
            checked = time.monotonic()
            said = _flwr(processes, "ls", "local")
            if "finished:failed" in said or "finished:stopped" in said:
                _flwr(processes, "log", run, "local", "--show")
                raise processes.failure("Flower's run failed", "flwr")
        time.sleep(0.5)
