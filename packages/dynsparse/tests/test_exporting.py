"""ONNX files for any batch size, beside torch, in ONNX Runtime."""

import pytest
import torch
from torch import nn

from dynsparse import SDConv2d, dynamic_layers, export_onnx, sd_tiny

onnxruntime = pytest.importorskip("onnxruntime")


def outputs(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("variant", ["sd", "condconv", "odconv"])
def test_a_file_takes_one_sample_and_five(tmp_path, variant):
    torch.manual_seed(0)
    model = sd_tiny(variant).eval()
    for _, layer in dynamic_layers(model):
        if layer.threshold is not None:
            layer.finalize(0.5)
    forms = [layer.form for _, layer in dynamic_layers(model)]
    export_onnx(model, tmp_path / "model.onnx", (1, 14, 14))
    for batch in (1, 5):
        x = torch.randn(batch, 1, 14, 14)
        torch.testing.assert_close(outputs(tmp_path / "model.onnx", x), model(x).detach(), rtol=1e-4, atol=1e-5)
    assert [layer.form for _, layer in dynamic_layers(model)] == forms


def test_groups_strides_and_bias_survive(tmp_path):
    torch.manual_seed(0)
    layer = SDConv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4)
    nn.init.normal_(layer.bias)
    layer.finalize(0.6)
    model = nn.Sequential(layer).eval()
    export_onnx(model, tmp_path / "model.onnx", (8, 11, 10), dynamic_batch=False)
    x = torch.randn(1, 8, 11, 10)
    torch.testing.assert_close(outputs(tmp_path / "model.onnx", x), model(x).detach(), rtol=1e-4, atol=1e-5)
