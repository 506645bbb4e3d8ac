"""Labelled image files as they lie on disk: bytes are read when a sample is asked for, and never decoded here."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, overload

from core_utils.data import image_folder
from imagenet_s.errors import SampleError

SMALL = 256
"""Pixels; images that all have one size up to this were probably resized and re-encoded before they came here."""

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CHECKED, _FEWEST = 100, 10
_WORTH_KEEPING = 2
_NO_LABEL = -1  # what Hugging Face writes for splits whose labels are secret


class AlreadyResizedWarning(UserWarning):
    """The images share one small size: what decoders and resizers did to the originals cannot be seen in them."""


@dataclass(frozen=True)
class Sample:
    """One image file.

    Attributes:
        data: the file's bytes, as stored.
        label: class index, or None.
        name: relative path or key, for messages and file names.
    """

    data: bytes = dataclasses.field(repr=False)
    label: int | None
    name: str


@dataclass(frozen=True)
class Entry:
    """Where one sample lies.

    Attributes:
        name: of the sample.
        label: of the sample.
        place: a path; a tar file with offset and size; a Parquet file with row group and row; or bytes.
    """

    name: str
    label: int | None
    place: Any = dataclasses.field(repr=False)


class Samples(Sequence):
    """Samples by number; a slice is again `Samples`, small to send to another process.

    A plain Sequence, not Sequence[Sample]: a type checker at run time would read an image to look at it.

    Attributes:
        entries: where the samples lie.
        source: what was opened, for messages.
    """

    def __init__(self, entries: Iterable[Entry], source: str) -> None:
        self.entries = tuple(entries)
        self.source = source

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Samples: ...

    def __getitem__(self, index: int | slice) -> Sample | Samples:
        """One sample, read now; or some, not yet read.

        Raises:
            SampleError: the file is gone or cannot be read.
        """
        if isinstance(index, slice):
            return type(self)(self.entries[index], self.source)
        entry = self.entries[index]
        return Sample(self._read(entry.place), entry.label, entry.name)

    @property
    def labels(self) -> tuple[int | None, ...]:
        """All labels; reads no image."""
        return tuple(entry.label for entry in self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """All names; reads no image."""
        return tuple(entry.name for entry in self.entries)

    def _read(self, place: Any) -> bytes:
        """Bytes in memory; overridden for what lies elsewhere."""
        return bytes(place)


class FileSamples(Samples):
    """Samples in files of their own."""

    def _read(self, place: Any) -> bytes:
        try:
            return Path(place).read_bytes()
        except OSError as error:
            raise SampleError(f"cannot read {place}: {error.strerror}") from None


class TarSamples(Samples):
    """Samples in WebDataset tars, read in place; nothing is extracted."""

    def _read(self, place: Any) -> bytes:
        path, offset, size = place
        try:
            with Path(path).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise SampleError(f"cannot read {path}: {error.strerror}") from None
        if len(data) != size:
            raise SampleError(f"{path} ends in the middle of a member", "it is truncated")
        return data


class ParquetSamples(Samples):
    """Samples in Parquet files; the images of the last row groups are kept, since rows are read in order."""

    def __init__(self, entries: Iterable[Entry], source: str) -> None:
        super().__init__(entries, source)
        self._kept: dict[tuple[str, int], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def _read(self, place: Any) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, column, group, row = place
        kept = self._kept.get((path, group))
        if kept is None:
            try:
                with pq.ParquetFile(path) as file:
                    kept = file.read_row_group(group, columns=[column]).column(0).combine_chunks()
            except (OSError, pa.ArrowException) as error:
                raise SampleError(f"cannot read {path}: {_one_line(error)}") from None
            if pa.types.is_struct(kept.type):
                kept = kept.field("bytes")
            self._kept = dict([*self._kept.items(), ((path, group), kept)][-_WORTH_KEEPING:])
        data = kept[row].as_py()
        if data is None:
            raise SampleError(
                f"{path}: row group {group}, row {row} holds no bytes", "images by path alone are not read"
            )
        return bytes(data)


def as_samples(items: Iterable[Any]) -> Samples:
    """Samples from memory; pairs without a name are called by their number. What already is `Samples` stays as it is."""
    if isinstance(items, Samples):
        return items
    entries = []
    for number, item in enumerate(items):
        if isinstance(item, Sample):
            entries.append(Entry(item.name, item.label, item.data))
            continue
        try:
            data, label = item
        except (TypeError, ValueError):
            raise SampleError(
                f"sample {number} is a {type(item).__name__}", "expected Sample or (bytes, label)"
            ) from None
        if not isinstance(data, bytes | bytearray | memoryview):
            raise SampleError(f"sample {number} holds a {type(data).__name__}", "expected the file's bytes")
        entries.append(Entry(f"{number:08d}", None if label is None else int(label), bytes(data)))
    return Samples(entries, "memory")


def open_samples(
    path: str | Path, *, root: str | Path | None = None, classes: int | None = None, check_sizes: bool = True
) -> Samples:
    """Opens a data set of original image files.

    Args:
        path: a folder of class folders of images, or of images; a text file with `relative/path label` in each line;
            a Parquet file or WebDataset tar, or a folder of them.
        root: the folder that the paths of a text file start from; by default the file's own.
        classes: the number of classes; a label outside is refused.
        check_sizes: look at the heads of up to 100 images and warn when nearly all share one small size.

    Raises:
        SampleError: nothing there, or it cannot be listed; the message names the file and the line, row or member.

    Warns:
        AlreadyResizedWarning: more than 90 % of the images that were looked at share one size of at most 256.
    """
    path = Path(path)
    samples = _opened(path, Path(root) if root is not None else None)
    if not len(samples):
        raise SampleError(f"{path} holds no images")
    for number, label in enumerate(samples.labels, start=1):
        if label is not None and (label < 0 or (classes is not None and label >= classes)):
            limit = "at least 0" if classes is None else f"from 0 to {classes - 1}"
            where = "line" if path.is_file() and isinstance(samples, FileSamples) else "sample"
            raise SampleError(f"{path}, {where} {number}: label {label} of {samples.names[number - 1]} is not {limit}")
    if check_sizes:
        _warn_if_resized(samples)
    return samples


def _opened(path: Path, root: Path | None) -> Samples:
    if path.is_dir():
        tars, tables = (sorted([*path.glob(f"*.{end}"), *path.glob(f"*/*.{end}")]) for end in ("tar", "parquet"))
        if tars:
            return _tars(tars, path)
        return _parquet(tables, path) if tables else _folder(path)
    if not path.exists():
        raise SampleError(f"{path} does not exist")
    if path.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
        raise SampleError(f"{path} is compressed and cannot be read in place", "unpack it to a .tar")
    if path.suffix == ".tar":
        return _tars([path], path)
    return _parquet([path], path) if path.suffix == ".parquet" else _meta_file(path, root or path.parent)


def _folder(path: Path) -> Samples:
    """Class folders as torchvision's ImageFolder lists them, or a flat folder of images without labels."""
    flat = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix.lower() in _IMAGES)
    if flat and not any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
        return FileSamples((Entry(entry.name, None, str(entry)) for entry in flat), str(path))
    listed = image_folder(path)
    named = ((file.relative_to(path).as_posix(), str(file)) for file in listed.paths)
    entries = (Entry(name, label, file) for (name, file), label in zip(named, listed.labels.tolist(), strict=True))
    return FileSamples(entries, str(path))


def _meta_file(path: Path, root: Path) -> Samples:
    """The authors' text file; split from the right, so that paths may hold blanks."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"cannot read {path} as a text file: {_one_line(error)}") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2 or not re.fullmatch(r"[+-]?\d+", parts[1]):
            what = "is blank" if not parts else "has no label"
            raise SampleError(f"{path}, line {number} {what}", "expected 'relative/path label' with a whole number")
        name, label = parts[0].strip(), int(parts[1])
        refuse_escape(name, f"{path}, line {number}")
        entries.append(Entry(name, label, os.fspath(root / name)))
    return FileSamples(entries, str(path))


def refuse_escape(name: str, where: str) -> None:
    """Refuses a name that is absolute or climbs, in either system's notation.

    Raises:
        SampleError: the message begins with `where`.
    """
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.anchor or ".." in flavour.parts:
            raise SampleError(
                f"{where}: path {name!r} leads out of its folder", "expected a relative path without '..'"
            )


def _tars(paths: list[Path], source: Path) -> Samples:
    return TarSamples((entry for path in paths for entry in _tar_entries(path)), str(source))


def _tar_entries(path: Path) -> Iterator[Entry]:
    """Images with the `.cls` of the same key, which ends at the first dot of the base name."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, extension = _key(member.name)
                if not member.isreg():
                    continue
                if f".{extension.rpartition('.')[2]}" in _IMAGES:
                    refuse_escape(member.name, str(path))
                    if key in images:
                        raise SampleError(f"{path}: {key} has two images, {images[key].name} and {member.name}")
                    images[key] = member
                elif extension == "cls":
                    labels[key] = _class_of(archive, member, path)
    except (OSError, tarfile.TarError) as error:
        raise SampleError(f"{path} is no readable tar: {_one_line(error)}") from None
    for key, member in images.items():
        if labels and key not in labels:
            raise SampleError(f"{path}: {member.name} has no label", f"expected {key}.cls, as other images have")
        yield Entry(member.name, labels.get(key), (str(path), member.offset_data, member.size))


def _key(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _class_of(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = archive.extractfile(member)
    text = file.read(32) if file is not None else b""
    try:
        return int(text)
    except ValueError:
        raise SampleError(f"{path}: {member.name} holds {text[:20]!r}", "expected a class index") from None


def _parquet(paths: list[Path], source: Path) -> Samples:
    if find_spec("pyarrow") is None:
        raise SampleError(f"{source}: reading Parquet needs pyarrow", "install imagenet-s[parquet]")
    return ParquetSamples((entry for path in paths for entry in _parquet_entries(path)), str(source))


def _parquet_entries(path: Path) -> Iterator[Entry]:
    """Rows of a column of bytes, plain or as Hugging Face's struct of bytes and path, with their `label`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            column, has_path = _image_column(file.schema_arrow, path)
            label = next((name for name in ("label", "labels", "cls") if name in file.schema_arrow.names), None)
            wanted = [*([label] if label else []), *([f"{column}.path"] if has_path else [])]
            read = f"{column}.bytes" if pa.types.is_struct(file.schema_arrow.field(column).type) else column
            row_number = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=wanted)
                rows = file.metadata.row_group(group).num_rows
                labels = table.column(label).to_pylist() if label else [_NO_LABEL] * rows
                paths = table.column(column).to_pylist() if has_path else [None] * rows
                for row in range(rows):
                    row_number += 1
                    if not isinstance(labels[row], int):
                        raise SampleError(f"{path}, row {row_number}: label {labels[row]!r} is no whole number")
                    name = (paths[row] or {}).get("path") or f"{path.stem}/{row_number - 1:08d}"
                    refuse_escape(name, f"{path}, row {row_number}")
                    value = None if labels[row] == _NO_LABEL else labels[row]
                    yield Entry(name, value, (str(path), read, group, row))
    except (OSError, pa.ArrowException) as error:
        raise SampleError(f"{path} is no readable Parquet file: {_one_line(error)}") from None


def _image_column(schema: Any, path: Path) -> tuple[str, bool]:
    """The first column of raw bytes, and whether it has paths beside them."""
    import pyarrow as pa

    def binary(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    for field in schema:
        if binary(field.type):
            return field.name, False
        if pa.types.is_struct(field.type):
            parts = {part.name: part.type for part in field.type}
            if binary(parts.get("bytes", pa.null())):
                return field.name, "path" in parts
    raise SampleError(f"{path} has no column of raw image bytes", "write it with Image(decode=False)")


def _warn_if_resized(samples: Samples) -> None:
    count = min(len(samples), _CHECKED)
    if count < _FEWEST:
        return
    # rows of one group come together, so a table is looked at where it begins
    step = 1 if isinstance(samples, ParquetSamples) else len(samples) // count
    sizes = [size for number in range(count) if (size := _size(samples, number * step)) is not None]
    for size in set(sizes):
        if max(size) <= SMALL and sizes.count(size) > 0.9 * len(sizes):
            warnings.warn(
                f"{samples.source}: {sizes.count(size)} of {len(sizes)} images are {size[0]} x {size[1]}; they look "
                "resized already, and the originals' bytes are what the measurement needs",
                AlreadyResizedWarning,
                stacklevel=3,
            )


def _size(samples: Samples, index: int) -> tuple[int, int] | None:
    """Width and height from the file's head; None for what is no image, which decoding will report."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(samples[index].data)) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
