"""Files that are whole or absent: written to a temporary name in the same folder, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from core_utils.errors import UserError

TEMPORARY = ".tmp"
"""How the names of unfinished files end."""


class FileError(UserError):
    """A file that cannot be written, or a path that leaves its folder."""


def write_atomically(target: Path, content: bytes | str, *, keep: Path | None = None) -> None:
    """Writes a file so that it is either whole or as it was before.

    Args:
        target: the file; its folder is made.
        content: all of it; text is written as UTF-8.
        keep: where the file that lies there now is moved first.

    Raises:
        FileError: the disk is full or the folder not writable; what was there before is untouched.
    """
    with atomic_file(target, keep=keep) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_file(target: Path, *, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Opens a file, too large for `write_atomically`, that takes its name when the block ends, and not if it fails.

    Args:
        target: the file; its folder is made.
        keep: where the file that lies there now is moved first.

    Raises:
        FileError: the disk is full or the folder not writable; what was there before is untouched.
    """
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=TEMPORARY)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            if keep is not None and target.exists():
                target.replace(keep)
            temporary.replace(target)
            _sync_folder(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turns the operating system's complaint about a file into one clear line."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot write {target}: {error.strerror}", "what was there before is untouched") from error


def inside(root: Path, name: str) -> Path:
    """The path of `name` under `root`.

    Raises:
        FileError: the name leads out of the root.
    """
    target = root / name
    if not target.resolve().is_relative_to(root.resolve()):
        raise FileError(f"{name!r} lies outside {root}")
    return target


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
