"""The ONNX file computes what the torch model computes."""

import importlib
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from nets import images, net
from torch import nn

import qdrop
from qdrop import QDropConfig, export, export_onnx, quantize
from qdrop.errors import ExportError


def quantised(w_bits=2, a_bits=2, **options):
    config = QDropConfig(w_bits=w_bits, a_bits=a_bits, method="nearest", **options)
    return quantize(net(), images(32, seed=1).split(16), config, progress=False)


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (8, 8), (3, 5)], ids=str)
def test_the_runtime_gives_the_torch_models_outputs_on_new_inputs_and_batch_sizes(tmp_path, bits):
    qm, path = quantised(*bits), tmp_path / "model.onnx"
    agreement = export_onnx(qm, path, images(4, seed=2))
    assert agreement.deviating <= 1e-3
    assert agreement.activations > 1000
    x = images(64, seed=3)
    with torch.no_grad():
        expected = qm(x).numpy()
    differing = np.abs(run(path, x)[0] - expected) > 1e-5
    assert differing.any(1).sum() <= 1  # of 64 samples: an activation at a tie, which a processor's sums may round away


@pytest.mark.parametrize(("opset", "kind"), [(21, "UINT4"), (23, "UINT4"), (18, "UINT8")])
def test_narrow_weights_are_stored_in_the_narrowest_type_there_is(tmp_path, opset, kind):
    qm, path = quantised(3, 4), tmp_path / "model.onnx"
    export_onnx(qm, path, images(2, seed=2), opset=opset)
    stored = onnx.load(path)
    assert stored.opset_import[0].version == opset
    initial = {each.name: each for each in stored.graph.initializer}
    weights = [
        initial[node.input[0]]
        for node in stored.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in initial
    ]
    kinds = [onnx.TensorProto.DataType.Name(weight.data_type) for weight in weights]
    assert sorted(kinds) == sorted(["UINT8"] * 2 + [kind] * (len(qm.weights) - 2))  # first and last layer: 8 bits
    codes = [torch.from_numpy(onnx.numpy_helper.to_array(weight).astype(np.uint8)) for weight in weights]
    for expected in qm.integer_state().values():
        assert any(torch.equal(found.flatten(), expected.codes.flatten()) for found in codes)
    assert not any(node.op_type == "Cast" for node in stored.graph.node)


def test_symmetric_grids_are_signed(tmp_path):
    qm, path = quantised(4, 4, w_symmetric=True, a_symmetric=True), tmp_path / "model.onnx"
    assert export_onnx(qm, path, images(4, seed=2)).deviating <= 1e-3
    kinds = {onnx.TensorProto.DataType.Name(each.data_type) for each in onnx.load(path).graph.initializer}
    assert {"INT4", "INT8"} <= kinds
    assert "UINT8" not in kinds


def test_attention_is_exported_with_its_operands_quantised(tmp_path):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    calib = torch.randn(32, 6, 16)
    qm = quantize(encoder, [calib], QDropConfig(w_bits=4, a_bits=4, method="nearest"), progress=False)
    path = tmp_path / "model.onnx"
    agreement = export_onnx(qm, path, calib[:4])
    assert agreement.deviating <= 1e-3
    with torch.no_grad():
        np.testing.assert_allclose(run(path, calib[:4])[0], qm(calib[:4]).numpy(), atol=1e-4)


def test_a_file_that_disagrees_is_not_written(tmp_path, monkeypatch):
    def shifted(layer):
        layer.bias.data += 0.3

    monkeypatch.setattr(export, "_add_bias_apart", shifted)
    with pytest.raises(ExportError, match="another code than torch"):
        export_onnx(quantised(), tmp_path / "model.onnx", images(4, seed=2))
    assert list(tmp_path.iterdir()) == []


def test_exporting_leaves_the_model_as_it_is(tmp_path):
    qm = quantised()
    before = {name: value.clone() for name, value in qm.state_dict().items()}
    with torch.no_grad():
        expected = qm(images(4, seed=2))
        export_onnx(qm, tmp_path / "model.onnx", images(4, seed=2))
        assert torch.equal(qm(images(4, seed=2)), expected)
    assert all(torch.equal(before[name], value) for name, value in qm.state_dict().items())


def test_an_unknown_operator_set_and_a_missing_extra_are_named(tmp_path, monkeypatch):
    qm = quantised()
    with pytest.raises(ExportError, match="opset 12"):
        export_onnx(qm, tmp_path / "model.onnx", images(2, seed=2), opset=12)

    def missing(name):
        raise ImportError("no", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ExportError, match=r"onnx is not installed.*qdrop\[onnx\]"):
        export_onnx(qm, tmp_path / "model.onnx", images(2, seed=2))


def test_a_model_that_torch_cannot_export_says_so(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = torch.relu(self.first(x))
            return self.second(x) if x.sum() > 0 else self.second(-x)

    torch.manual_seed(0)
    with warnings.catch_warnings():
        qm = quantize(Branching(), [torch.randn(32, 4)], QDropConfig(method="nearest"), progress=False)
    with pytest.raises(ExportError, match="cannot export"):
        export_onnx(qm, tmp_path / "model.onnx", torch.randn(4, 4))
    assert torch.overrides._get_current_function_mode_stack() == []


def test_the_two_operators_compute_what_they_stand_for():
    x = torch.linspace(-1, 2, 7)
    low, high = torch.tensor(-0.5), torch.tensor(1.0)
    zero = torch.tensor(1, dtype=torch.uint8)
    found = torch.ops.qdrop.quantize_dequantize(x, torch.tensor(0.5), zero, low, high, 0, 3)
    assert torch.equal(found, qdrop.fake_quantize(x, torch.tensor(0.5), 1, 0, 3))
    codes = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
    scale, zeros = torch.tensor([0.5, 2.0]), torch.tensor([1, 2], dtype=torch.uint8)
    found = torch.ops.qdrop.dequantize(codes, scale, zeros, 0, 2)
    assert found.tolist() == [[-0.5, 1.0], [-2.0, 0.0]]
