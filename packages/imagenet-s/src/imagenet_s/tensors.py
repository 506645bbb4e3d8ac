"""Tensors that a foreign runtime dumped, one .npy an image, brought beside the samples they were made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float32

from imagenet_s.errors import SampleError
from imagenet_s.samples import Samples


@dataclass(frozen=True, eq=False)
class Dumped:
    """Tensors with channels last, in the order of the samples.

    Attributes:
        values: as the runtime gave them, but for the layout.
        index: number of each in the samples.
        layout: that they came in, "NCHW" or "NHWC".
        dtype: that they came in.
        missing: how many samples have no tensor.
        unknown: names of tensors that belong to no sample.
    """

    values: Float32[np.ndarray, "n S S 3"]
    index: tuple[int, ...]
    layout: str
    dtype: str
    missing: int
    unknown: tuple[str, ...]


def read_tensors(tensors: str | Path | Mapping[str, np.ndarray], samples: Samples) -> Dumped:
    """Reads dumped tensors and finds their samples by stem: the name without folders and suffix, or with its folders.

    Args:
        tensors: a folder of .npy files, [3, S, S] or [S, S, 3], perhaps with a batch of one; or arrays by name.
        samples: what they were made of.

    Raises:
        SampleError: no tensor belongs to a sample, two belong to one, or one is of another shape or not finite.
    """
    source = "tensors" if isinstance(tensors, Mapping) else str(tensors)
    by_name = dict(tensors) if isinstance(tensors, Mapping) else _files(Path(tensors))
    places = _places(samples)
    matched: dict[int, str] = {}
    unknown = []
    for name in by_name:
        # dumps often keep the whole file name: photo.jpg.npy
        stem = str(PurePosixPath(name.removesuffix(".npy")))
        at = next((places[each] for each in (stem, _stem(stem)) if each in places), None)
        if at is None:
            unknown.append(name)
        elif at in matched:
            raise SampleError(f"{source}: {matched[at]} and {name} both belong to {samples.names[at]}")
        else:
            matched[at] = name
    if not matched:
        raise SampleError(
            f"{source}: none of {len(by_name)} tensors has the stem of a sample",
            f"such as {_stem(samples.names[0])}.npy",
        )
    index = tuple(sorted(matched))
    arrays = [_array(by_name[matched[at]], f"{source}: {matched[at]}") for at in index]
    for at, each in zip(index, arrays, strict=True):
        if each.shape != arrays[0].shape:
            raise SampleError(
                f"{source}: {matched[at]} is {list(each.shape)}, {matched[index[0]]} is {list(arrays[0].shape)}"
            )
    first = arrays[0].shape[0] == 3
    values = np.stack([array.transpose(1, 2, 0) if first else array for array in arrays])
    return Dumped(
        np.ascontiguousarray(values, np.float32),
        index,
        "NCHW" if first else "NHWC",
        str(arrays[0].dtype),
        len(samples) - len(index),
        tuple(unknown),
    )


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise SampleError(f"{folder} is no folder of .npy files")
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*.npy"))}
    if not files:
        raise SampleError(f"{folder} holds no .npy files")
    return files


def _places(samples: Samples) -> dict[str, int]:
    """Numbers of samples by name, by name without suffix, and by base name where no other sample has it."""
    places: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(samples.names):
        for key in {name, _stem(name), PurePosixPath(name).name, PurePosixPath(name).stem}:
            places[key].append(number)
    return {key: numbers[0] for key, numbers in places.items() if len(numbers) == 1}


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).name else name


def _array(source: np.ndarray | Path, name: str) -> np.ndarray:
    if isinstance(source, Path):
        try:
            array = np.load(source, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SampleError(f"{name} is no .npy file: {error}") from None
    else:
        array = np.asarray(source)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    square = array.ndim == 3 and (
        array.shape[1] == array.shape[2] if array.shape[0] == 3 else array.shape[0] == array.shape[1]
    )
    if not square or 3 not in (array.shape[0], array.shape[-1]):
        raise SampleError(f"{name} has shape {list(array.shape)}", "expected [3, S, S] or [S, S, 3]")
    if not (np.issubdtype(array.dtype, np.floating) or array.dtype == np.uint8):
        raise SampleError(f"{name} holds {array.dtype}", "expected floating point numbers or uint8")
    if not np.isfinite(array).all():
        raise SampleError(f"{name} holds numbers that are not finite")
    return array
