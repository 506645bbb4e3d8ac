from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx_sessions import operation, run

from mqbench_lite.pooling import average_pool, global_average, reduce_mean


def drawn(seed: int) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
    rng = np.random.default_rng(seed)
    shape = (2, int(rng.integers(1, 20)), int(rng.integers(4, 10)), int(rng.integers(4, 10)))
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    step = float(np.float32(np.exp(rng.uniform(-5, 0))))
    out = step if seed % 2 else float(np.float32(step * rng.uniform(0.2, 1.0)))  # an equal step makes ties
    return codes, (step, out), (int(rng.integers(0, 256)), int(rng.integers(0, 256)))


@pytest.mark.parametrize("seed", range(8))
def test_a_global_average_is_onnxruntimes(seed: int) -> None:
    codes, steps, zeros = drawn(seed)
    model = operation("GlobalAveragePool", [(steps[0], zeros[0])], list(codes.shape), (steps[1], zeros[1]))
    centred = torch.tensor(codes.astype(np.float32) - zeros[0])
    for keep in (True, False):
        ours = global_average(centred, keep, steps, -zeros[1], 255 - zeros[1]) + zeros[1]
        np.testing.assert_array_equal(ours.numpy().ravel(), run(model, codes).ravel())
        assert ours.dim() == (4 if keep else 2)


@pytest.mark.parametrize(("counted", "ceil"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (4, 3, 0)])
def test_an_average_pool_is_onnxruntimes(kernel: int, stride: int, padding: int, counted: bool, ceil: bool) -> None:
    attributes = {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (padding,) * 2, "ceil": ceil}
    for seed in range(4):
        codes, steps, zeros = drawn(seed)
        named = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "ceil_mode": int(ceil)}
        grids = [(steps[0], zeros[0])]
        model = operation(
            "AveragePool", grids, list(codes.shape), (steps[1], zeros[1]), count_include_pad=int(counted), **named
        )
        centred = torch.tensor(codes.astype(np.float32) - zeros[0])
        ours = average_pool(
            centred, attributes | {"count_padding": counted}, steps, zeros[1], -zeros[1], 255 - zeros[1]
        )
        np.testing.assert_array_equal(ours.numpy() + zeros[1], run(model, codes))


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 3), (7, 7), (4, 4), (5, 6), (11, 9)])
@pytest.mark.parametrize("keep", [True, False])
def test_a_mean_of_floats_is_summed_in_onnxruntimes_order(size: tuple[int, int], keep: bool) -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, *size)).astype(np.float32)
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=int(keep))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    infos[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))
    graph = helper.make_graph([node], "mean", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours = reduce_mean(torch.tensor(x), {"axes": (2, 3), "keep": keep})
    np.testing.assert_array_equal(ours.numpy(), run(model.SerializeToString(), x))


def test_a_mean_over_other_axes_is_torchs() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert reduce_mean(x, {"axes": (1,), "keep": False}).tolist() == x.mean(1).tolist()
