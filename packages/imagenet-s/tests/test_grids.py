import dataclasses

import numpy as np
import photographs
import pytest

from imagenet_s import DecodeError, Grid, Pipeline, PipelineError, ShapeMismatchError
from imagenet_s import grids as grids_module
from imagenet_s.decoding import decoders, register_decoder

PHOTO = photographs.jpeg(photographs.photograph("china.jpg")[:131, :203].copy())
SMALL = Pipeline(size=28)


def test_the_paper_grid_has_three_decoders_and_eleven_resizers():
    grid = Grid.paper()
    assert len(grid) == 33 == len(list(grid))
    assert grid.names[0] == "pillow/pillow-nearest"
    assert grid.names[-1] == "ffmpeg/opencv-lanczos4"
    assert dict(grid)["opencv/pillow-box"] == Pipeline(decoder="opencv", resizer="pillow-box")


def test_views_are_what_each_pipeline_gives_by_itself():
    grid = Grid.paper(SMALL)
    views = dict(grid.views(PHOTO))
    assert tuple(views) == grid.names
    for name, pipeline in grid:
        assert np.array_equal(views[name], pipeline.pixels(PHOTO)), name


def test_orientation_and_colour_of_the_pipeline_count():
    turned = Grid(("pillow",), ("pillow-box",), Pipeline(size=28, orientation="apply"))
    data = photographs.jpeg(photographs.photograph("china.jpg")[:131, :203].copy(), orientation=6)
    (view,) = (pixels for _, pixels in turned.views(data))
    assert np.array_equal(view, dataclasses.replace(turned.pipeline, resizer="pillow-box").pixels(data))
    assert not np.array_equal(view, Pipeline(size=28, resizer="pillow-box").pixels(data))


@pytest.fixture
def counted():
    """Decoders that note each call; `copy-a` and `copy-b` give what Pillow gives, `darker` does not."""
    calls = []

    def make(name, change):
        def decode(data):
            calls.append(name)
            return change(decoders()["pillow"].decode(data))

        return decode

    changes = {"copy-a": lambda image: image, "copy-b": np.copy, "darker": lambda image: image // 2}
    for name in changes:
        if name not in decoders():  # the registry is the process's; what is registered looks the call up
            register_decoder(name, lambda data, name=name: make_call[name](data), version="1")
    make_call.update({name: make(name, change) for name, change in changes.items()})
    return calls


make_call = {}


def test_each_decoder_runs_once_for_all_resizers(counted):
    grid = Grid(("copy-a", "darker", "copy-b"), grids_module.PAPER_RESIZERS, SMALL)
    views = dict(grid.views(PHOTO))
    assert counted == ["copy-a", "darker", "copy-b"]
    assert len(views) == 33


def test_equal_images_are_resized_once(counted, monkeypatch):
    fits = []
    fit_all = Pipeline.fit_all
    monkeypatch.setattr(
        Pipeline, "fit_all", lambda self, source, names: fits.extend(names) or fit_all(self, source, names)
    )
    grid = Grid(("copy-a", "darker", "copy-b"), ("pillow-box", "opencv-area"), SMALL)
    views = dict(grid.views(PHOTO))
    assert len(fits) == 4
    assert views["copy-b/pillow-box"] is views["copy-a/pillow-box"]
    assert not np.array_equal(views["darker/pillow-box"], views["copy-a/pillow-box"])
    with pytest.raises(ValueError, match="read-only"):
        views["copy-b/pillow-box"][0, 0, 0] = 1


def test_duplicates_are_named_and_left_out(counted):
    grid = Grid(("copy-a", "copy-b", "darker"), ("pillow-box", "opencv-area"), SMALL).distinct([PHOTO])
    assert grid.decoders == ("copy-a", "darker")
    assert grid.duplicates == (("copy-b", "copy-a"),)
    same = Grid(("copy-a",), ("pillow-nearest", "opencv-nearest"), Pipeline(size=28, resize_size=32))
    assert same.distinct().resizers == ("pillow-nearest", "opencv-nearest")


def test_the_modern_grid_holds_no_two_that_agree():
    grid = Grid.modern(SMALL)
    assert "pillow" in grid.decoders
    assert ("opencv", "pillow") in grid.duplicates
    assert grid.distinct() == dataclasses.replace(grid, duplicates=())
    stand_ins = {name for _, name in grid.duplicates}
    assert stand_ins <= {*grid.decoders, *grid.resizers}


def test_decoders_that_give_other_sizes_are_named(counted):
    make_call["darker"] = lambda data: decoders()["pillow"].decode(data).transpose(1, 0, 2).copy()
    data = photographs.jpeg(photographs.photograph("china.jpg")[:40, :60].copy(), orientation=6)
    with pytest.raises(ShapeMismatchError, match=r"'darker' gives 40x60, the file says 60x40 .orientation tag 6"):
        list(Grid(("pillow", "darker"), ("pillow-box",)).views(data))


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        ((), ("pillow-box",), "without decoders"),
        (("pillow",), (), "without resizers"),
        (("pillow", "pillow"), ("pillow-box",), "'pillow' twice"),
        (("pilow",), ("pillow-box",), "pilow"),
        (("pillow",), ("pillow-bix",), "pillow-bix"),
    ],
)
def test_grids_that_cannot_be_are_refused(left, right, message):
    with pytest.raises(PipelineError, match=message):
        Grid(left, right)


def test_bad_files_raise_and_odd_ones_do_not():
    grid = Grid(("pillow", "opencv"), ("pillow-box",), SMALL)
    for _, data in photographs.broken_files():
        with pytest.raises(DecodeError):
            list(grid.views(data))
    for name, data in photographs.odd_files():
        assert len(list(grid.views(data))) == 2, name


def test_the_hash_tells_grids_apart():
    grid = Grid.paper(SMALL)
    assert grid.hash == Grid.paper(SMALL).hash
    assert grid.hash != Grid.paper().hash != Grid(("pillow",), grid.resizers).hash
