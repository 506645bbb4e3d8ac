from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from drawn_networks import network, recipes
from hypothesis import HealthCheck, given, settings

from mqbench_lite.graph import QuantizedGraph
from mqbench_lite.integers import IntegerModel
from mqbench_lite.onnx_files import to_onnx


def in_onnxruntime(content: bytes, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


def pixels(model: QuantizedGraph, batch: int = 3) -> np.ndarray:
    shape = model.shapes["input.0"][1:]
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)


exhaustive = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@exhaustive
@given(recipes)
def test_every_logit_is_onnxruntimes_to_the_bit(recipe: tuple[int, list[str]]) -> None:
    model = network(*recipe)
    x = pixels(model)
    (expected,) = in_onnxruntime(to_onnx(model).SerializeToString(), x)
    np.testing.assert_array_equal(IntegerModel(model)(torch.from_numpy(x)).numpy(), expected)
