"""One shard of generated views: a pure function of its samples and grid, whose file is whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from core_utils.files import TEMPORARY, atomic_file, disk_errors, inside, write_atomically
from core_utils.jsonable import dumps
from imagenet_s.decoding import Decoder, decoder, decoders, register_decoder
from imagenet_s.errors import ImagenetSError
from imagenet_s.grids import Grid
from imagenet_s.resizing import Resizer, register_resizer, resizer, resizers
from imagenet_s.samples import Samples

Layout = Literal["webdataset", "parquet", "npy"]
Codec = Literal["webp", "png", "npy"]
SUFFIXES = {"webdataset": ".tar", "parquet": ".parquet", "npy": ".npy"}
RECORDS = ".shards"
"""Folder of what each finished shard holds; the manifest is made of it."""

_LIBRARIES = ("numpy", "pillow", "opencv-python-headless", "pyarrow", "imagenet-s")
_ROW_GROUP = 8  # images; each has all views, some megabytes in the paper's grid


@dataclass(frozen=True)
class BadImage:
    """An image that is in no view, and why.

    Attributes:
        index: in the samples.
        name: of the sample.
        kind: the error's name, or "died" when a library took its process along.
        message: the error's text.
    """

    index: int
    name: str
    kind: str
    message: str


@dataclass(frozen=True)
class ShardJob:
    """What one shard is made of.

    Attributes:
        number: of the shard.
        first: index of its first sample.
        samples: the shard's own.
        grid: the views of each image.
        out: the folder of all shards.
        layout: the kind of file.
        codec: how pixels are stored, without loss.
        versions: of the libraries that must make it.
        entries: the grid's decoders and resizers; a process that lacks one, because it was registered, gets it so.
        deadly: images that took their process along before; they are left out.
    """

    number: int
    first: int
    samples: Samples
    grid: Grid
    out: str
    layout: Layout
    codec: Codec
    versions: dict[str, str] = field(default_factory=dict)
    entries: tuple[Decoder | Resizer, ...] = ()
    deadly: tuple[BadImage, ...] = ()

    @property
    def name(self) -> str:
        """The shard's file; for "npy", whose files have the samples' names, only a name."""
        return f"shard-{self.number:06d}{SUFFIXES[self.layout]}"

    @property
    def record(self) -> Path:
        """Where the shard's record lies once it is finished."""
        return Path(self.out) / RECORDS / f"{self.number:06d}.json"


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard.

    Attributes:
        shard: its file's name.
        count: images in it.
        sha256: of the file; for "npy", of its files' paths and contents.
        files: relative paths, for "npy" alone.
        errors: images left out.
    """

    shard: str
    count: int
    sha256: str
    files: tuple[str, ...] = ()
    errors: tuple[BadImage, ...] = ()

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> ShardRecord:
        """The record that JSON data describe."""
        errors = tuple(BadImage(**each) for each in facts.pop("errors"))
        return cls(**facts | {"files": tuple(facts["files"])}, errors=errors)


def write_shard(job: ShardJob) -> ShardRecord:
    """Makes a shard's file and then its record; the same job gives the same bytes in every process.

    Raises:
        ImagenetSError: this process has other versions of the libraries than the job asks for.
    """
    get_ready(job.grid, job.entries)
    refuse_other_versions(job.name, job.versions, versions(job.grid))
    errors: list[BadImage] = []
    rows = _rows(job, errors)
    files: tuple[str, ...] = ()
    if job.layout == "npy":
        files, count = _write_npy(job, rows)
    else:
        with atomic_file(Path(job.out) / job.name) as file:
            count = (_write_tar if job.layout == "webdataset" else _write_parquet)(file, job, rows)
    record = ShardRecord(job.name, count, digest(Path(job.out), job.name, files), files, tuple(errors))
    write_atomically(job.record, dumps(record) + "\n")
    return record


def digest(out: Path, name: str, files: tuple[str, ...]) -> str:
    """SHA-256 of a shard as it lies on disk.

    Raises:
        OSError: a file is not there.
    """
    if not name.endswith(SUFFIXES["npy"]):
        with (out / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for each in files:
        whole.update(each.encode() + b"\0" + hashlib.sha256((out / each).read_bytes()).digest())
    return whole.hexdigest()


def versions(grid: Grid) -> dict[str, str]:
    """Of each decoder and resizer with its codec, of the libraries that store, and of Python."""
    used = {name: decoder(name).version for name in grid.decoders}
    used |= {name: resizer(name).version for name in grid.resizers}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            used[name] = importlib.metadata.version(name)
    return used | {"python": platform.python_version()}


def refuse_other_versions(what: str, before: dict[str, str], now: dict[str, str]) -> None:
    """Refuses to mix what different libraries make.

    Raises:
        ImagenetSError: they differ; the message shows both.
    """
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if changed:
        shown = "; ".join(f"{name} {before.get(name)} then, {now.get(name)} now" for name in changed)
        raise ImagenetSError(f"{what} was begun with other versions: {shown}", "overwrite, or name a new folder")


def get_ready(grid: Grid, entries: tuple[Decoder | Resizer, ...]) -> None:
    """Registers what this process lacks, and keeps the libraries to one thread: the workers share the cores already."""
    for entry in entries:
        if isinstance(entry, Decoder) and entry.name not in decoders():
            register_decoder(entry.name, entry.decode, entry.version, entry.description)
        if isinstance(entry, Resizer) and entry.name not in resizers():
            register_resizer(entry.name, entry.resize, entry.version, entry.description)
    os.environ.setdefault("VIPS_CONCURRENCY", "1")  # read when libvips is loaded
    import cv2

    cv2.setNumThreads(1)
    if any(name.startswith("torch") for name in (*grid.decoders, *grid.resizers)):
        import torch  # noqa: F401 -- from here on it is among the loaded modules
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@dataclass(frozen=True)
class _Row:
    index: int
    name: str
    label: int | None
    views: dict[str, bytes]


def _rows(job: ShardJob, errors: list[BadImage]) -> Iterator[_Row]:
    """The images of which every view could be made; the others are appended to `errors`."""
    deadly = {each.index: each for each in job.deadly}
    for offset, name in enumerate(job.samples.names):
        index = job.first + offset
        if index in deadly:
            errors.append(deadly[index])
            continue
        try:
            sample = job.samples[offset]
            views = _encoded(job.grid, sample.data, job.codec)
        except ImportError:
            raise
        except Exception as error:  # one bad file never costs the run, whatever a library makes of it
            errors.append(BadImage(index, name, type(error).__name__, _told(error)))
            continue
        yield _Row(index, name, sample.label, views)


def _told(error: Exception) -> str:
    """An error in one line, without the addresses of objects, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(error).split()))


def _encoded(grid: Grid, data: bytes, codec: Codec) -> dict[str, bytes]:
    """The stored views of an image; arrays that are shared are encoded once."""
    stored: dict[int, tuple[np.ndarray, bytes]] = {}  # holds the arrays too, so that no id is used twice
    views = {}
    for name, pixels in grid.views(data):
        if id(pixels) not in stored:
            stored[id(pixels)] = pixels, encode(pixels, codec)
        views[name] = stored[id(pixels)][1]
    return views


def encode(pixels: UInt8[np.ndarray, "S S 3"], codec: Codec) -> bytes:
    """A file of pixels, without loss."""
    file = io.BytesIO()
    if codec == "npy":
        np.save(file, pixels, allow_pickle=False)
        return file.getvalue()
    from PIL import Image

    image = Image.fromarray(pixels)
    if codec == "png":
        image.save(file, "PNG", compress_level=1)
    else:
        image.save(file, "WEBP", lossless=True, method=0, quality=0)  # quality is effort here
    return file.getvalue()


def _write_tar(file: Any, job: ShardJob, rows: Iterator[_Row]) -> int:
    """`INDEX.DECODER.RESIZER.CODEC` for every view, `INDEX.cls` and `INDEX.json`, as webdataset groups them."""
    count = 0
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
        for row in rows:
            key = f"{row.index:08d}"
            facts = {"index": row.index, "name": row.name, "label": row.label}
            _add(archive, f"{key}.json", json.dumps(facts, sort_keys=True).encode())
            if row.label is not None:
                _add(archive, f"{key}.cls", str(row.label).encode())
            for name, content in row.views.items():
                _add(archive, f"{key}.{name.replace('/', '.')}.{job.codec}", content)
            count += 1
    return count


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner, mode and time of its defaults: the bytes must not tell who wrote them
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _write_parquet(file: Any, job: ShardJob, rows: Iterator[_Row]) -> int:
    """A row for each image: index, name, label, and a column of bytes for each view."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = [("index", pa.int64()), ("name", pa.string()), ("label", pa.int64())]
    schema = pa.schema([*facts, *((name, pa.binary()) for name in job.grid.names)])
    count = 0
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for group in _grouped(rows):
            columns = [[row.index for row in group], [row.name for row in group], [row.label for row in group]]
            columns += [[row.views[name] for row in group] for name in job.grid.names]
            arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            count += len(group)
    return count


def _grouped(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    group: list[_Row] = []
    for row in rows:
        group.append(row)
        if len(group) == _ROW_GROUP:
            yield group
            group = []
    if group:
        yield group


def _write_npy(job: ShardJob, rows: Iterator[_Row]) -> tuple[tuple[str, ...], int]:
    """The authors' layout, DECODER/RESIZER/PATH.npy; flushed to disk together before the shard's record is written."""
    out, files, count = Path(job.out), [], 0
    for row in rows:
        for name, content in row.views.items():
            target = inside(out, f"{name}/{row.name}.npy")
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.{job.number}{TEMPORARY}")
                temporary.write_bytes(content)
                temporary.replace(target)
            files.append(target.relative_to(out).as_posix())
        count += 1
    for name in (*files, *{Path(each).parent.as_posix() for each in files}):
        _flush(out / name)
    return tuple(files), count


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
