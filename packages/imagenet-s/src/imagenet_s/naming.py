"""What the command line calls pipelines, grids and data sets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from imagenet_s.decoding import decoders
from imagenet_s.errors import ImagenetSError, PipelineError
from imagenet_s.grids import Grid
from imagenet_s.pipelines import PAPER, Pipeline
from imagenet_s.presets import PRESETS
from imagenet_s.resizing import resizers
from imagenet_s.samples import Sample, Samples, as_samples, open_samples

BUILT_IN = ("photographs", "garments", "garments-test")
"""Data sets that need no files: crops of the photographs in scikit-image and scikit-learn, without labels; and
Fashion-MNIST garments before such photographs, to train on and to test on."""

_CROPS = 140
_TRIPLES = ("mean", "std", "fill")
_HF = "preprocessor_config.json"


def pipeline_of(text: str) -> Pipeline:
    """The pipeline that a text names, with fields changed by what follows after commas.

    Args:
        text: `NAME[,field=value...]`. NAME is a preset; a decoder, a resizer or DECODER/RESIZER in the paper's pipeline;
            `timm:MODEL`; a JSON file of `Pipeline.to_json`; or a `preprocessor_config.json` or its folder. Three
            numbers of mean, std or fill are parted by slashes; `colour=nv12` is NV12 with its defaults.

    Raises:
        PipelineError: nothing is called so, or a field or value is unknown.
    """
    name, *changes = text.split(",")
    fields = json.loads(_named(name.strip()).to_json())
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise PipelineError(f"{change!r} in {text!r}", "expected field=value")
        fields[key.strip()] = _value(key.strip(), value.strip())
        if key.strip() in ("size", "geometry") and not any("resize_size" in each for each in changes):
            fields["resize_size"] = None
    return Pipeline.from_json(json.dumps(fields))


def grid_of(name: str, pipeline: Pipeline, some_decoders: str, some_resizers: str, factors: str) -> Grid:
    """The grid `paper` or `modern` around a pipeline, or one of the decoders and resizers that are named.

    Args:
        name: "paper" or "modern".
        pipeline: everything but decoder and resizer.
        some_decoders: names parted by commas instead of the grid's own; "" for none.
        some_resizers: likewise.
        factors: likewise, of `grids.FACTORS`.

    Raises:
        PipelineError: an unknown name.
    """
    if name not in ("paper", "modern"):
        raise PipelineError(f"--grid {name!r} is unknown", "grids are paper and modern")
    grid = Grid.paper(pipeline) if name == "paper" else Grid.modern(pipeline)
    return dataclasses.replace(
        grid,
        decoders=parted(some_decoders) or grid.decoders,
        resizers=parted(some_resizers) or grid.resizers,
        factors=parted(factors),
    )


def samples_of(data: str, root: Path | None = None) -> Samples:
    """The data set at a path, or one of `BUILT_IN`.

    Raises:
        SampleError: nothing is there, or it cannot be listed.
    """
    if data not in BUILT_IN or Path(data).exists():
        return open_samples(data, root=root)
    if data == "photographs":
        from imagenet_s.photographs import crops

        samples = as_samples(Sample(crop, None, f"crop-{n:03d}.jpg") for n, crop in enumerate(crops(_CROPS, seed=0)))
    else:
        from imagenet_s.miniature import garments

        files, labels = garments("train" if data == "garments" else "test")
        pairs = enumerate(zip(files, labels.tolist(), strict=True))
        samples = as_samples(Sample(file, label, f"garment-{n:05d}.jpg") for n, (file, label) in pairs)
    samples.source = data
    return samples


def _named(name: str) -> Pipeline:
    if name in PRESETS:
        return PRESETS[name]
    if name.startswith("timm:"):
        return Pipeline.from_timm(_timm_config(name.removeprefix("timm:")))
    path = Path(name)
    if path.name == _HF or (path / _HF).is_file():
        return Pipeline.from_hf(path)
    if path.suffix == ".json":
        try:
            return Pipeline.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PipelineError(f"cannot read {path}: {error}") from None
    left, slash, right = name.partition("/")
    if slash and left in decoders() and right in resizers():
        return dataclasses.replace(PAPER, decoder=left, resizer=right)
    if name in decoders():
        return dataclasses.replace(PAPER, decoder=name)
    if name in resizers():
        return dataclasses.replace(PAPER, resizer=name)
    known = f"presets are {', '.join(PRESETS)}; `imagenet-s list` shows decoders and resizers"
    raise PipelineError(f"no pipeline is called {name!r}", known)


def _timm_config(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise ImagenetSError(f"timm:{name} needs timm", 'pip install "imagenet-s[timm]"') from None
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise PipelineError(f"timm knows no pretrained model {name!r}")
    return config


def _value(key: str, text: str) -> Any:
    if key in _TRIPLES:
        text = f"[{text.replace('/', ',')}]"
    if key == "colour" and text == "nv12":
        return {}
    try:
        return json.loads(text)
    except ValueError:
        return text


def parted(names: str) -> tuple[str, ...]:
    """Names parted by commas."""
    return tuple(name.strip() for name in names.split(",") if name.strip())
