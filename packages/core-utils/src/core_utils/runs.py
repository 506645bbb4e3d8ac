"""A run is a folder: what was asked, where it ran, what happened, what came out.

`config.json`, `environment.json`, `log.jsonl`, `result.json`, `figures/`, `checkpoint/` (the two newest states).
Every file but the log is written atomically; the log grows by whole lines. A killed process therefore leaves at most
one torn log line, which the next opening drops.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core_utils.errors import UserError
from core_utils.files import TEMPORARY, disk_errors, inside, write_atomically
from core_utils.jsonable import dumps, jsonable
from core_utils.states import DamagedState, pack, unpack

_log = logging.getLogger(__name__)
_LOCK = ".lock"


class RunError(UserError):
    """A run folder that cannot be opened, read or written as asked."""


class Run:
    """One run's folder. Made by `Run.open`; a context manager that releases the folder's lock.

    Attributes:
        path: the folder.
        config: the configuration as JSON data.
        finished: True once `result.json` is there; such a run is read-only.
        follower: True in a torchrun process of rank above 0: it reads the folder that rank 0 holds, and its writes do
            nothing.
    """

    def __init__(
        self, path: Path, config: Any, *, finished: bool, lock: int | None = None, follower: bool = False
    ) -> None:
        self.path = path
        self.config = config
        self.finished = finished
        self.follower = follower
        self._lock = lock
        self._fallbacks: list[str] = []

    @classmethod
    def open(cls, path: str | Path, config: Any, *, resume: bool = False, overwrite: bool = False) -> Run:
        """Opens a new run, one to go on with, or a finished one for reading.

        Args:
            path: the run's folder; made if missing, with its parents. One in which nothing was done yet counts as new.
            config: a dataclass or a mapping that JSON can hold; what the run is asked to do.
            resume: go on with an unfinished run of the same configuration.
            overwrite: remove the run that lies there, with all its files, and start anew; never touches a folder
                that holds no run.

        Returns:
            The run, locked for this process unless it is finished.

        Raises:
            RunError: the folder holds something else, another configuration, an unfinished run without `resume`, a
                damaged file, or is in use by another process or not writable.
        """
        path = Path(path)
        wanted = json.loads(dumps(config))
        if int(os.environ.get("RANK", "0")) > 0:
            return cls(path, wanted, finished=not overwrite and (path / "result.json").is_file(), follower=True)
        lock = _prepare(path)
        try:
            if overwrite:
                _clear(path)
            elif not _unstarted(path):
                _same_config(path, wanted)
                if (path / "result.json").is_file():
                    os.close(lock)
                    return cls(path, wanted, finished=True)
                if not resume:
                    raise RunError(f"{path} holds an unfinished run", "add --resume to go on, or name a new folder")
            run = cls(path, wanted, finished=False, lock=lock)
            run._recover()
            run._write_environment()
            run.write("config.json", wanted)  # last: a folder with a configuration is a whole run folder
        except BaseException:
            os.close(lock)
            raise
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the folder; closing twice does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log(self, **figures: Any) -> None:
        """Appends one line to `log.jsonl` and hands it to the operating system before returning.

        Args:
            figures: JSON values; numbers that are not finite are written as null and named under `non_finite`.
        """
        if not self._writes("log.jsonl"):
            return
        line = (dumps(figures) + "\n").encode()
        log = self.path / "log.jsonl"
        with disk_errors(log), log.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(start)
                raise

    def records(self) -> Iterator[dict[str, Any]]:
        """The logged lines, oldest first.

        Raises:
            RunError: a line is not JSON, with the file and line number.
        """
        log = self.path / "log.jsonl"
        if not log.is_file():
            return
        with log.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise RunError(f"{log} is damaged at line {number}", "restore it or name a new folder") from None

    def write(self, name: str, data: Any) -> Path:
        """Writes one file of the run atomically.

        Args:
            name: path under the run's folder; folders are made.
            data: bytes, text, or what JSON can hold (numbers that are not finite become null and are named).

        Returns:
            The file's path.
        """
        target = inside(self.path, name)
        if self._writes(name):
            write_atomically(target, data if isinstance(data, bytes | str) else dumps(data, indent=2) + "\n")
        return target

    def read(self, name: str) -> Any:
        """The JSON data of one of the run's files.

        Raises:
            RunError: the file is missing or damaged.
        """
        return _read_json(inside(self.path, name))

    def finish(self, result: Any) -> None:
        """Writes `result.json`; from then on the run is read-only."""
        self.write("result.json", result)
        self.finished = True
        self.close()

    def result(self) -> Any:
        """The finished run's result, as JSON data."""
        return self.read("result.json")

    def fallback(self, what: str) -> None:
        """Records in `environment.json`, once, that a slower or older path was taken."""
        if what not in self._fallbacks:
            self._fallbacks.append(what)
            self._write_environment()

    def save_state(self, name: str, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Saves a state as one safetensors file, keeping the one before it.

        Args:
            name: the state's name; the file is `checkpoint/<name>.safetensors`.
            tensors: arrays by name, any shape and any dtype that safetensors knows.
            facts: JSON data: positions, schedules, random states.
        """
        if not self._writes(f"checkpoint/{name}"):
            return
        current = inside(self.path, f"checkpoint/{name}.safetensors")
        write_atomically(current, pack(tensors, jsonable(facts), owner=self._digest), keep=_previous(current))

    def load_state(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The newest whole state of that name as tensors and facts, or None if none was saved.

        A damaged newest file falls back to the one before, which is logged and recorded.

        Raises:
            RunError: no whole state is left, or it belongs to another configuration.
        """
        current = inside(self.path, f"checkpoint/{name}.safetensors")
        damage: list[str] = []
        for file in (current, _previous(current)):
            if not file.is_file():
                continue
            try:
                tensors, facts, owner = unpack(file.read_bytes())
            except DamagedState as error:
                damage.append(f"{file} {error}")
                _log.warning("%s", damage[-1])
                continue
            if owner != self._digest:
                raise RunError(f"{file} belongs to another configuration", "name a new folder")
            if damage and not self.finished:
                self.fallback(f"{damage[0]}; the state before it was used")
            return tensors, facts
        if damage:
            raise RunError(damage[0], f"remove {current.parent} to start this run anew")
        return None

    @property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def _writes(self, name: str) -> bool:
        """Whether this process writes; a finished or closed run refuses."""
        if self.finished:
            raise RunError(f"{self.path} holds a finished run and is read-only; {name} was not written")
        if self._lock is None and not self.follower:
            raise RunError(f"{self.path} was closed; {name} was not written")
        return not self.follower

    def _recover(self) -> None:
        """Removes what a killed process left half written; names what cannot be explained that way."""
        for leftover in self.path.rglob(f".*{TEMPORARY}"):
            leftover.unlink()
        _drop_torn_line(self.path / "log.jsonl")
        for _ in self.records():
            pass
        if (self.path / "environment.json").is_file() and not _unstarted(self.path):
            self._fallbacks = self.read("environment.json")["fallbacks"]

    def _write_environment(self) -> None:
        seed = self.config.get("seed") if isinstance(self.config, dict) else None
        self.write("environment.json", {**environment(), "seed": seed, "fallbacks": self._fallbacks})


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, platform and commit of this process; what a figure must be read beside."""
    distributions = sorted(importlib.metadata.distributions(), key=lambda each: each.name.lower())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "versions": {distribution.name: distribution.version for distribution in distributions},
    }


def read_finished(
    folder: Path, command: str, known: Callable[[Any], bool], *, error: type[UserError] = RunError
) -> dict[str, Any]:
    """What a finished run was asked to do: its configuration, as JSON data.

    Args:
        folder: the run's.
        command: that leaves such runs, such as `snn-tet train`; for messages.
        known: whether a configuration is one of that command's; to fail on it is to say no.
        error: what to raise.

    Raises:
        UserError: the folder holds no such run, or one that is not finished.
    """
    try:
        asked: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        ours = known(asked)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        ours = False
    if not ours:
        raise error(f"{folder} is no folder of `{command}`")
    if not (folder / "result.json").is_file():
        raise error(f"{folder} is not finished", f"{command} ... --out {folder} --resume")
    return asked


def _prepare(path: Path) -> int:
    """Makes and locks the folder; refuses one that holds something else than a run."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "config.json").is_file() and not _unstarted(path):
            raise RunError(f"{path} is not empty and holds no run", "name a new folder")
        return _lock(path)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{path} is not a folder", "name a folder") from None
    except OSError as error:
        raise RunError(f"cannot use {path} as a run folder: {error.strerror}", "name a writable folder") from error


def _unstarted(path: Path) -> bool:
    """Whether nothing was done in the folder yet: it is empty, or its process ended before the first line of the log."""
    ours = {_LOCK, "config.json", "environment.json"}
    return all(entry.name in ours or entry.name.endswith(TEMPORARY) for entry in path.iterdir())


def _lock(path: Path) -> int:
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode().strip() or "unknown"
        os.close(descriptor)
        raise RunError(f"{path} is in use by process {owner}", "wait for it or name a new folder") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _clear(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _same_config(path: Path, wanted: Any) -> None:
    difference = next(_differences(_read_json(path / "config.json"), wanted), None)
    if difference is not None:
        raise RunError(f"{path} holds a run of another configuration: {difference}", "name a new folder")


def _differences(held: Any, wanted: Any, where: str = "") -> Iterator[str]:
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in sorted({*held, *wanted}):
            yield from _differences(held.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    elif held != wanted:
        yield f"{where or 'configuration'} is {json.dumps(held)} there, {json.dumps(wanted)} here"


def _drop_torn_line(log: Path) -> None:
    if not log.is_file():
        return
    content = log.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        _log.warning("%s: dropped a torn last line of %d bytes", log, len(content) - whole)
        os.truncate(log, whole)


def _previous(current: Path) -> Path:
    return current.with_suffix(f".previous{current.suffix}")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{file} is missing") from None
    except ValueError:
        raise RunError(f"{file} is damaged", "restore it or name a new folder") from None


def _commit() -> str | None:
    """The commit of the working directory's checkout, marked `+` where files differ from it."""
    try:
        commit, status = (
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if status else "")
