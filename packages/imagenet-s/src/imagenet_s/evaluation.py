"""Runs a classifier on every view of every image, online: nothing but predictions is stored."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from core_utils.runs import Run
from imagenet_s import factors, statistics
from imagenet_s.colour import Nv12
from imagenet_s.decoding import Decoder, decoder
from imagenet_s.errors import ImagenetSError, PipelineError, SampleError
from imagenet_s.feeding import CHUNK, Chunk, chunks
from imagenet_s.grids import Grid
from imagenet_s.models import Model, fingerprint, serving
from imagenet_s.pipelines import Pipeline
from imagenet_s.resizing import Resizer, resizer
from imagenet_s.results import CHANGES, Result
from imagenet_s.samples import Sample, Samples, as_samples
from imagenet_s.shards import BadImage, versions

__all__ = ["Result", "evaluate", "to_batch"]

_PARTIAL = "partial.json"

Predict = Callable[[Tensor], np.ndarray]


def evaluate(
    model: Model,
    samples: Samples | Iterable[Sample | tuple[bytes, int | None]],
    grid: Grid,
    *,
    reference: str,
    batch_size: int = 16,
    device: str = "cpu",
    workers: int = 1,
    cluster: str | None = None,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    max_errors: float = 0.01,
    progress: bool = False,
) -> Result:
    """Predicts every image under every combination of the grid.

    Each file is decoded once a decoder; views go to the device as 8-bit pixels and are normalised there; views with the
    same pixels are predicted once. The grid's factors change one thing each, at the reference: colours on the way to the
    model, or a copy of the model; int8 takes its ranges from the reference's views of the first 128 images.

    Args:
        model: any callable on a float batch that returns (N, C) logits.
        samples: image files.
        grid: the combinations.
        reference: name of the combination that the others are compared with, "decoder/resizer".
        batch_size: views at a time; a CPU is slower with many, since the memory of large activations is always fresh.
        device: where a torch model runs.
        workers: 1 makes the views in a thread of this process, more in processes of their own.
        cluster: address of a Dask scheduler whose workers make the views instead.
        cache_dir: a run folder that keeps what is done; the same call goes on there after it was stopped.
        overwrite: begin anew in `cache_dir`.
        seed: of the bootstrap.
        max_errors: share of files that may be unreadable; they are left out of all combinations.
        progress: show a bar on stderr.

    Returns:
        Predictions of each image, and the figures made of them.

    Raises:
        PipelineError: the reference is not in the grid, or a decoder or resizer is not installed.
        SampleError: no samples, too many unreadable files, or a label outside of the model's classes.
        ModelError: the model fails, or returns NaN or another shape.
        UserError: `cache_dir` holds an evaluation of another model, grid, data set or library version.
    """
    samples = as_samples(samples)
    _check(samples, grid, reference, batch_size, max_errors)
    task = _Task(samples, grid, reference, seed, max_errors)
    with contextlib.ExitStack() as stack:
        run: Run | None = None
        if cache_dir is not None:
            config = task.config(model, device)
            run = stack.enter_context(Run.open(Path(cache_dir), config, resume=True, overwrite=overwrite))
            task.load(run)
        if not task.complete:
            shown = stack.enter_context(_bar(len(samples), len(task.done) * CHUNK, progress))
            predict = stack.enter_context(serving(model, device))
            inside = task.deployed(stack, model, device)
            extra = tuple(task.colours.values())
            todo = chunks(samples, grid, extra, workers=workers, cluster=cluster, done=frozenset(task.done))
            stack.callback(todo.close)
            try:
                for chunk in todo:
                    task.add(chunk, predict, inside, batch_size, device, run)
                    shown()
            except KeyboardInterrupt:
                if run is not None and task.done and any(len(part["kept"]) for part in task.done.values()):
                    run.write(_PARTIAL, task.result().to_json())
                raise
        result = task.result()
        if run is not None and not run.finished:
            run.finish(json.loads(result.to_json()))
    return result


def to_batch(pixels: UInt8[Tensor, "n S S 3"], pipeline: Pipeline) -> Float[Tensor, "n _ _ _"]:
    """`pipeline.tensor` for a batch, on whatever device it lies: the same bits on the CPU.

    A float16 pipeline rounds to float16 and returns float32, since it is the pixels' precision that it describes.
    """
    image = pixels if pipeline.channels == "rgb" else pixels.flip(-1)
    axes = (1, 3, 1, 1) if pipeline.layout == "NCHW" else (1, 1, 1, 3)
    image = image.permute(0, 3, 1, 2) if pipeline.layout == "NCHW" else image
    batch = image.to(torch.float32, memory_format=torch.contiguous_format)
    batch /= torch.tensor(
        [1 / pipeline.scale], device=pixels.device
    )  # a tensor: by a number, CUDA multiplies by the inverse
    batch -= torch.tensor(pipeline.mean, device=pixels.device).view(axes)
    batch /= torch.tensor(pipeline.std, device=pixels.device).view(axes)
    return batch.half().float() if pipeline.dtype == "float16" else batch


@dataclasses.dataclass
class _Task:
    """An evaluation on its way: what each chunk of images gave."""

    samples: Samples
    grid: Grid
    reference: str
    seed: int
    max_errors: float
    done: dict[int, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    errors: list[BadImage] = dataclasses.field(default_factory=list)
    flags: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    inapplicable: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.done) * CHUNK >= len(self.samples)

    @property
    def colours(self) -> dict[str, Pipeline]:
        """The reference with each factor that changes pixels."""
        left, right = self.reference.split("/")
        own = dataclasses.replace(self.grid.pipeline, decoder=left, resizer=right)
        return {name: dataclasses.replace(own, colour=Nv12()) for name in self.grid.factors if name == "nv12"}

    def deployed(self, stack: contextlib.ExitStack, model: Model, device: str) -> dict[str, Predict]:
        """Copies of the model as each other factor deploys it; a factor that has no place in it is written down."""
        served = {}
        for name in self.grid.factors:
            if name in self.colours:
                continue
            try:
                copied = stack.enter_context(factors.deployed(model, name, partial(self._calibration, device)))
            except factors.NotApplicable as error:
                self.inapplicable[name] = str(error)
            else:
                served[name] = stack.enter_context(serving(copied, device))
        return served

    def config(self, model: Model, device: str) -> dict[str, Any]:
        """What decides the predictions, and with them what one folder may hold."""
        names = hashlib.sha256(json.dumps([self.samples.names, self.samples.labels]).encode()).hexdigest()
        return {
            "evaluate": 1,
            "model": fingerprint(model),
            "device": device,
            "grid": self.grid.names,
            "factors": self.grid.factors,
            "pipeline": json.loads(self.grid.pipeline.to_json()),
            "reference": self.reference,
            "samples": {"source": self.samples.source, "count": len(self.samples), "sha256": names},
            "chunk": CHUNK,
            "seed": self.seed,
            "versions": versions(self.grid) | {"torch": torch.__version__},
        }

    def load(self, run: Run) -> None:
        for number in range(-(-len(self.samples) // CHUNK)):
            state = run.load_state(_name(number))
            if state is not None:
                self.done[number] = state[0]
                self.errors += [BadImage(**each) for each in state[1]["errors"]]
                self.flags += [(name, flag) for name, flag in state[1]["flags"]]
                self.inapplicable |= state[1]["inapplicable"]
        self._not_too_many_errors()

    def add(
        self,
        chunk: Chunk,
        predict: Predict,
        inside: dict[str, Predict],
        batch_size: int,
        device: str,
        run: Run | None,
    ) -> None:
        """Predicts one chunk's views and keeps what came out."""
        self.errors += chunk.errors
        self.flags += chunk.flags
        self._not_too_many_errors()
        views = chunk.first[:, None] + chunk.index  # [images, combos], rows of the pixels
        logits = self._logits(chunk.pixels, predict, batch_size, device)[views.T]
        own = chunk.pixels[views[:, self.grid.names.index(self.reference)]]
        more = [self._logits(own, each, batch_size, device)[None] for each in inside.values()]
        part = self._figures(chunk, np.concatenate([logits, *more]))
        if run is not None:
            facts: dict[str, Any] = {"errors": [dataclasses.asdict(e) for e in chunk.errors], "flags": chunk.flags}
            facts["inapplicable"] = self.inapplicable
            run.save_state(_name(chunk.number), part, facts)
        self.done[chunk.number] = part

    def result(self) -> Result:
        parts = [self.done[number] for number in sorted(self.done)]
        kept = np.concatenate([part["kept"] for part in parts])
        if not len(kept):
            raise SampleError(f"none of the {len(self.samples)} images can be read")
        labels = [self.samples.labels[index] for index in kept]
        index = np.concatenate([part["index"] for part in parts])
        seen: dict[bytes, int] = {}
        pixels = [seen.setdefault(column.tobytes(), len(seen)) for column in index.T]
        changed = [name for name in self.grid.factors if name not in self.inapplicable and name not in self.colours]
        return Result(
            decoders=self.grid.decoders,
            resizers=self.grid.resizers,
            reference=self.reference,
            predictions=np.concatenate([part["predictions"] for part in parts], axis=1),
            labels=None if None in labels else np.array(labels, np.int64),
            images=tuple(self.samples.names[index] for index in kept),
            changes={key: np.concatenate([part[key] for part in parts], axis=1) for key in CHANGES},
            pixels=(*pixels, *(len(seen) + n for n in range(len(changed)))),  # a changed model shares no result
            errors=tuple(sorted(self.errors, key=lambda error: error.index)),
            versions=versions(self.grid),
            seed=self.seed,
            complete=self.complete,
            factors=(*self.colours, *changed),
            inapplicable=self.inapplicable,
            flags=tuple(sorted(self.flags)),
        )

    def _logits(
        self, pixels: UInt8[np.ndarray, "n S S 3"], predict: Predict, batch_size: int, device: str
    ) -> Float32[np.ndarray, "n classes"]:
        parts = [
            predict(to_batch(torch.from_numpy(pixels[start : start + batch_size]).to(device), self.grid.pipeline))
            for start in range(0, len(pixels), batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, 1), np.float32)

    def _calibration(self, device: str) -> Iterator[Tensor]:
        """The reference's views of the first images."""
        left, right = self.reference.split("/")
        grid = Grid((left,), (right,), self.grid.pipeline)
        for chunk in chunks(self.samples[: factors.CALIBRATION_IMAGES], grid):
            yield to_batch(torch.from_numpy(chunk.pixels).to(device), self.grid.pipeline)

    def _figures(self, chunk: Chunk, logits: Float32[np.ndarray, "combos n classes"]) -> dict[str, np.ndarray]:
        classes = logits.shape[-1]
        for at in chunk.kept:
            label = self.samples.labels[at] or 0
            if label >= classes:
                raise SampleError(f"label {label} of {self.samples.names[at]}: the model has {classes} classes, from 0")
        base = logits[self.grid.names.index(self.reference)]
        compared = [statistics.logit_change(each, base) for each in logits]
        changes = {key: np.stack([getattr(each, key) for each in compared]).astype(np.float32) for key in CHANGES}
        predictions = logits.argmax(axis=-1).astype(np.int64)
        return {"predictions": predictions, "index": chunk.index, "kept": chunk.kept, **changes}

    def _not_too_many_errors(self) -> None:
        if len(self.errors) > self.max_errors * len(self.samples):
            first = self.errors[0]
            raise SampleError(
                f"{len(self.errors)} of {len(self.samples)} images cannot be read, more than the share of "
                f"{self.max_errors:g} that may; {first.name}: {first.message}",
                "raise max_errors",
            )


def _check(samples: Samples, grid: Grid, reference: str, batch_size: int, max_errors: float) -> None:
    if not len(samples):
        raise SampleError("there are no samples")
    if reference not in grid.names:
        raise PipelineError(f"reference {reference!r} is not in the grid", f"it holds {', '.join(grid.names[:4])}, ...")
    if batch_size < 1:
        raise ImagenetSError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= max_errors <= 1:
        raise ImagenetSError(f"max_errors must lie in 0..1, got {max_errors}")
    entries: list[Decoder | Resizer] = [*map(decoder, grid.decoders), *map(resizer, grid.resizers)]
    for entry in entries:
        if not entry.available:
            raise PipelineError(f"{entry.name} is not available here: {entry.why_not}")


def _name(number: int) -> str:
    return f"chunk-{number:06d}"


@contextlib.contextmanager
def _bar(total: int, before: int, progress: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task("images", total=total, completed=min(before, total))
        yield lambda: bar.update(task, advance=CHUNK)
