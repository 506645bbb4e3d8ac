"""Writes every view of a data set into shards: resumable, and the same bytes whoever makes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_utils.errors import CheckFailed
from core_utils.files import write_atomically
from core_utils.jobs import JobError, map_jobs
from core_utils.jsonable import dumps, jsonable
from imagenet_s.decoding import Decoder, decoder
from imagenet_s.errors import ImagenetSError, PipelineError, SampleError
from imagenet_s.grids import Grid
from imagenet_s.resizing import Resizer, resizer
from imagenet_s.samples import Sample, Samples, as_samples, refuse_escape
from imagenet_s.shards import (
    RECORDS,
    SUFFIXES,
    BadImage,
    Codec,
    Layout,
    ShardJob,
    ShardRecord,
    digest,
    get_ready,
    refuse_other_versions,
    versions,
    write_shard,
)

MANIFEST = "manifest.json"
ERRORS = "errors.jsonl"
_FORMAT = 1


@dataclass(frozen=True)
class Generated:
    """What `generate` left on disk.

    Attributes:
        out: the folder.
        shards: all of them, in order.
        images: images in the shards.
        errors: images in none, in order.
        resumed: how many shards lay there finished and were left untouched.
    """

    out: Path
    shards: tuple[ShardRecord, ...]
    images: int
    errors: tuple[BadImage, ...]
    resumed: int


def generate(
    samples: Samples | Iterable[Sample | tuple[bytes, int | None]],
    grid: Grid,
    out: str | Path,
    shard: Layout = "webdataset",
    *,
    codec: Codec | None = None,
    shard_size: int = 256,
    workers: int = 1,
    cluster: str | None = None,
    resume: bool = True,
    overwrite: bool = False,
    max_errors: float = 0.01,
    progress: bool = False,
) -> Generated:
    """Writes all views of all samples, lossless, and `manifest.json` with the hash of each shard last.

    Args:
        samples: image files.
        grid: the views.
        out: folder of the shards; on a cluster, one that its workers see too.
        shard: "webdataset" writes tars with `INDEX.DECODER.RESIZER.CODEC`, "parquet" a column for each view, "npy" the
            authors' DECODER/RESIZER/PATH.npy with a text file of labels for each view.
        codec: how pixels are stored; "webp" by default, and "npy", the only choice, with the shards of that name.
        shard_size: samples in a shard.
        workers: processes.
        cluster: address of a Dask scheduler instead.
        resume: go on with what lies in `out`: finished shards whose hash is right are not touched.
        overwrite: remove what an earlier call wrote there first.
        max_errors: the share of images that may be bad; they are in `errors.jsonl`, and in no view.
        progress: show a bar on stderr.

    Raises:
        SampleError: more images are bad than may be, or two share the name that would be their file's.
        PipelineError: a library that the grid needs is missing.
        ImagenetSError: `out` holds something else, or was begun with other samples, settings or library versions.
        CheckFailed: a shard failed for another reason than its images.
    """
    samples, out = as_samples(samples), Path(out)
    codec = codec or ("npy" if shard == "npy" else "webp")
    _check(samples, grid, shard, codec, shard_size, max_errors)
    config = _config(samples, grid, shard, codec, shard_size)
    if overwrite:
        _remove(out)
    found = _begin(out, config, resume=resume)
    jobs = {job.name: job for job in _jobs(samples, grid, out, config)}
    records = {name: record for name, record in found.items() if name in jobs and _is_whole(out, record)}
    resumed = len(records)
    try:
        _run(jobs, records, len(samples), workers, cluster, max_errors, progress=progress)
    finally:
        ordered = tuple(records[name] for name in jobs if name in records)
        errors = tuple(error for record in ordered for error in record.errors)
        write_atomically(out / ERRORS, "".join(dumps(error) + "\n" for error in errors))
    if shard == "npy":
        _write_meta_files(out, samples, grid, {error.index for error in errors})
    images = sum(record.count for record in ordered)
    totals = {"complete": True, "images": images, "errors": len(errors), "shards": ordered}
    _write_manifest(out, config | totals)
    if (out / RECORDS).exists():
        shutil.rmtree(out / RECORDS)
    return Generated(out, ordered, images, errors, resumed)


def _check(samples: Samples, grid: Grid, shard: str, codec: str, shard_size: int, max_errors: float) -> None:
    if grid.factors:
        raise ImagenetSError(f"factor {grid.factors[0]!r} is for evaluate", "generate a grid without factors")
    if shard not in SUFFIXES:
        raise ImagenetSError(f"shard must be one of {', '.join(SUFFIXES)}, got {shard!r}")
    if codec not in ("webp", "png", "npy") or (shard == "npy" and codec != "npy"):
        raise ImagenetSError(f"codec {codec!r} does not go with {shard} shards", "codecs are webp, png and npy")
    if shard_size < 1:
        raise ImagenetSError(f"shard_size must be at least 1, got {shard_size}")
    if not 0 <= max_errors <= 1:
        raise ImagenetSError(f"max_errors must lie in 0..1, got {max_errors}")
    if not len(samples):
        raise SampleError("there are no samples")
    for name in samples.names if shard == "npy" else ():
        refuse_escape(name, samples.source)
    if shard == "npy" and len(set(samples.names)) < len(samples):
        twice = next(name for name in samples.names if samples.names.count(name) > 1)
        raise SampleError(f"two samples are called {twice}", "npy shards are named after the samples")
    named: list[Decoder | Resizer] = [*map(decoder, grid.decoders), *map(resizer, grid.resizers)]
    for entry in named:
        if not entry.available:
            raise PipelineError(f"{entry.name} is not available here: {entry.why_not}")


def _config(samples: Samples, grid: Grid, shard: str, codec: str, shard_size: int) -> dict[str, Any]:
    """What decides the bytes of the shards, except for the images themselves."""
    names = hashlib.sha256(json.dumps([samples.names, samples.labels]).encode()).hexdigest()
    return {
        "format": _FORMAT,
        "shard": shard,
        "codec": codec,
        "shard_size": shard_size,
        "grid": {"decoders": list(grid.decoders), "resizers": list(grid.resizers), "hash": grid.hash},
        "pipeline": json.loads(grid.pipeline.to_json()),
        "samples": {"source": samples.source, "count": len(samples), "sha256": names},
        "versions": versions(grid),
    }


def _remove(out: Path) -> None:
    """Removes what a manifest says is ours, and nothing else."""
    manifest = _read_manifest(out)
    if manifest is None:
        return
    for record in _records(out, manifest).values():
        for name in record.files or (record.shard,):
            (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / RECORDS, ignore_errors=True)
    (out / ERRORS).unlink(missing_ok=True)
    (out / MANIFEST).unlink()


def _begin(out: Path, config: dict[str, Any], *, resume: bool) -> dict[str, ShardRecord]:
    """Writes the unfinished manifest, or compares with the one that lies there and lists its shards."""
    manifest = _read_manifest(out)
    if manifest is None:
        if out.exists() and any(out.iterdir()):
            raise ImagenetSError(f"{out} holds something else", "name a new folder")
        _write_manifest(out, config | {"complete": False, "shards": []})
        return {}
    if not resume:
        raise ImagenetSError(f"{out} holds shards already", "resume, overwrite, or name a new folder")
    for key in config:
        if key != "versions" and manifest.get(key) != config[key]:
            raise ImagenetSError(
                f"{out} was begun with another {key}: {_short(manifest.get(key))}, now {_short(config[key])}",
                "overwrite, or name a new folder",
            )
    refuse_other_versions(str(out), manifest["versions"], config["versions"])
    return _records(out, manifest)


def _records(out: Path, manifest: dict[str, Any]) -> dict[str, ShardRecord]:
    """Finished shards, of the manifest when it is complete and of their own records before."""
    facts = list(manifest["shards"])
    for path in sorted((out / RECORDS).glob("*.json")):
        try:
            facts.append(json.loads(path.read_text()))
        except ValueError:
            raise ImagenetSError(f"{path} is damaged", "remove it: its shard is made again") from None
    return {each["shard"]: ShardRecord.from_json(dict(each)) for each in facts}


def _read_manifest(out: Path) -> dict[str, Any] | None:
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] == _FORMAT:
            return manifest
    except (ValueError, TypeError, KeyError):
        pass
    raise ImagenetSError(f"{path} is no manifest of format {_FORMAT}", "name a new folder")


def _write_manifest(out: Path, facts: dict[str, Any]) -> None:
    write_atomically(out / MANIFEST, json.dumps(jsonable(facts), indent=1) + "\n")


def _is_whole(out: Path, record: ShardRecord) -> bool:
    try:
        return digest(out, record.shard, record.files) == record.sha256
    except OSError:
        return False


def _jobs(samples: Samples, grid: Grid, out: Path, config: dict[str, Any]) -> Iterator[ShardJob]:
    named: list[Decoder | Resizer] = [*map(decoder, grid.decoders), *map(resizer, grid.resizers)]
    entries = tuple(entry for entry in named if _is_registered(entry))
    for number, first in enumerate(range(0, len(samples), config["shard_size"])):
        part = samples[first : first + config["shard_size"]]
        yield ShardJob(
            number, first, part, grid, str(out), config["shard"], config["codec"], config["versions"], entries
        )


def _is_registered(entry: Decoder | Resizer) -> bool:
    """Whether the user added it; a fresh process has the others by itself."""
    functions = [value for value in vars(entry).values() if callable(value)]
    return any(not (function.__module__ or "").startswith("imagenet_s.") for function in functions)


def _run(
    jobs: dict[str, ShardJob],
    records: dict[str, ShardRecord],
    images: int,
    workers: int,
    cluster: str | None,
    max_errors: float,
    *,
    progress: bool,
) -> None:
    """Runs what has no record yet; a shard whose process died runs again without the images that kill."""
    failed: dict[str, JobError] = {}
    todo = {name: job for name, job in jobs.items() if name not in records}
    _not_too_many(records, images, max_errors)
    while todo:
        died = {}
        results = map_jobs(write_shard, todo, workers=workers, cluster=cluster, progress=progress, threads=1)
        for result in results:
            if result.error is None:
                records[result.key] = result.value
                try:
                    _not_too_many(records, images, max_errors)
                except SampleError:
                    results.close()
                    raise
            elif result.error.kind == "died" and not todo[result.key].deadly:
                died[result.key] = todo[result.key]
            else:
                failed[result.key] = result.error
        todo = {name: _without_deadly(job, workers, cluster) for name, job in died.items()}
    if failed:
        name, error = next(iter(failed.items()))
        raise CheckFailed(f"{len(failed)} of {len(jobs)} shards failed; {name}: {error}")


def _not_too_many(records: dict[str, ShardRecord], images: int, max_errors: float) -> None:
    errors = [error for record in records.values() for error in record.errors]
    if len(errors) > max_errors * images:
        raise SampleError(
            f"{len(errors)} of {images} images cannot be read, more than the share of {max_errors:g} that may; "
            f"{errors[0].name}: {errors[0].message}",
            "see errors.jsonl, or raise max_errors",
        )


def _without_deadly(job: ShardJob, workers: int, cluster: str | None) -> ShardJob:
    """Tries each image of a shard in a job of its own to find those that end their process."""
    alone = {str(index): (job.samples[index : index + 1], job.grid, job.entries) for index in range(len(job.samples))}
    results = map_jobs(_try_views, alone, workers=workers, cluster=cluster, progress=False, threads=1)
    deadly = tuple(
        BadImage(job.first + int(result.key), job.samples.names[int(result.key)], "died", result.error.message)
        for result in results
        if result.error is not None and result.error.kind == "died"
    )
    # An empty tuple would run it again for ever: what dies only together is a failed shard.
    none = BadImage(-1, "", "died", "no single image")
    return dataclasses.replace(job, deadly=deadly or (none,))


def _try_views(job: tuple[Samples, Grid, tuple[Decoder | Resizer, ...]]) -> None:
    samples, grid, entries = job
    get_ready(grid, entries)
    try:
        for _ in grid.views(samples[0].data):
            pass
    except Exception:
        return  # an ordinary bad image, which its shard records


def _write_meta_files(out: Path, samples: Samples, grid: Grid, bad: set[int]) -> None:
    """The authors' `DECODER_RESIZER.txt`; without labels there is nothing to write."""
    rows = [row for index, row in enumerate(zip(samples.names, samples.labels, strict=True)) if index not in bad]
    text = "".join(f"{name}.npy {label}\n" for name, label in rows if label is not None)
    if text:
        for name in grid.names:
            write_atomically(out / f"{name.replace('/', '_')}.txt", text)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else f"{text[:77]}..."
