from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from drawn_networks import network
from hosts import REDUCED

from mqbench_lite.encodings import clip_ranges, qnn_encodings, tensorrt_cache
from mqbench_lite.errors import ExportError
from mqbench_lite.graph import QParams


def test_a_cache_holds_each_step_size_to_the_bit() -> None:
    model = network(0, ["conv", "residual"], signed_share=1.0)
    header, *lines = tensorrt_cache(model).splitlines()
    assert header.startswith("TRT-")
    assert len(lines) == len(model.grids)
    for (name, grid), line in zip(model.grids.items(), lines, strict=True):
        tensor, _, bits = line.partition(": ")
        assert tensor == model.graph[name].inputs[0]
        assert np.float32(struct.unpack(">f", bytes.fromhex(bits))[0]) == grid.scale


def test_tensorrt_takes_symmetric_grids_only() -> None:
    with pytest.raises(ExportError, match=r"Q:input\.0: TensorRT quantises symmetrically"):
        tensorrt_cache(network(0, ["conv"]))


def test_ranges_reach_the_farthest_value_of_the_grid() -> None:
    model = network(0, ["conv"], signed_share=1.0)
    ranges = clip_ranges(model)["tensorrt"]["blob_range"]
    assert ranges["input.0"] == pytest.approx(128 * float(model.grids["Q:input.0"].scale))


def test_encodings_give_width_range_step_and_offset() -> None:
    model = network(0, ["conv"])
    grid = QParams(scale=np.array(4 / 255, np.float32), zero_point=np.array(64, np.int32), qmin=0, qmax=255)
    model = replace(model, grids=model.grids | {"Q:input.0": grid})
    found = qnn_encodings(model)
    (entry,) = found["activation_encodings"]["input.0"]  # the spec's asymmetric [-1, 3]
    assert (entry["bitwidth"], entry["offset"], entry["is_symmetric"]) == (8, -64, "False")
    assert entry["scale"] == pytest.approx(4 / 255)
    assert (entry["min"], entry["max"]) == (pytest.approx(-64 * 4 / 255), pytest.approx(191 * 4 / 255))
    name, layer = next((name, layer) for name, layer in model.layers.items() if layer.grid.scale.ndim)
    weights = found["param_encodings"][f"{name}.weight"]
    assert [each["scale"] for each in weights] == [float(scale) for scale in layer.grid.scale]
    assert {each["offset"] for each in weights} == {-64 if REDUCED else -128}
    assert {each["is_symmetric"] for each in weights} == {"True"}
