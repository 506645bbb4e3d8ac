import warnings

import numpy as np
import onnx
import photographs
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from imagenet_s import ModelError, Pipeline
from imagenet_s.models import OnnxModel, TrainModeWarning, fingerprint, load_model, serving
from imagenet_s.presets import LITE0_MEAN, LITE0_STD

BATCH = torch.linspace(0, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


class Net(nn.Module):
    """A batch norm, so that the mode shows, and a head."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(48, 5)

    def forward(self, x):
        return self.head(self.norm(x).flatten(1))


@pytest.fixture(scope="module")
def lite0():
    return load_model("lite0")


def test_lite0_sees_a_castle_in_china_and_another_filter_flips_it(lite0):
    china = dict(photographs.originals())["china.jpg"]

    def top(resizer):
        pipeline = Pipeline(resizer=resizer, mean=LITE0_MEAN, std=LITE0_STD)
        with serving(lite0) as predict:
            return torch.from_numpy(predict(torch.from_numpy(pipeline(china))[None])).softmax(1)[0]

    bilinear, cubic = top("pillow-bilinear"), top("opencv-cubic")
    # specification, section 10: class 442 with 0.333, and class 663 first (0.264 against 0.263)
    assert bilinear.argmax() == 442
    assert bilinear[442] == pytest.approx(0.333, abs=0.01)
    assert cubic.argmax() == 663
    assert cubic[663] == pytest.approx(0.264, abs=0.002)


def test_a_model_in_training_mode_is_measured_in_evaluation_mode_and_given_back():
    net = Net()
    net.head.eval()  # each module's own mode must come back
    modes = []
    net.register_forward_hook(lambda *_: modes.append(net.norm.training))
    with pytest.warns(TrainModeWarning, match="Net is in training mode"):
        inside = _served(net)
    assert modes == [False]
    assert (net.training, net.norm.training, net.head.training) == (True, True, False)
    assert torch.equal(net.norm.running_mean, torch.zeros(3))
    with torch.no_grad():
        np.testing.assert_array_equal(inside, net.eval()(BATCH).numpy())


def _served(model):
    with serving(model) as predict:
        return predict(BATCH)


def test_the_mode_comes_back_when_the_model_fails():
    net = Net()
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(ModelError, match=r"Net fails on a batch \[2, 3, 5, 4\]: RuntimeError"),
        serving(net) as predict,
    ):
        predict(torch.zeros(2, 3, 5, 4))
    assert net.training


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(3, 5), r"returns \[3, 5\] for 2 images"),
        (torch.zeros(2, 5, 1), r"returns \[2, 5, 1\] for 2 images"),
        (torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), "returns NaN or infinity for 1 images"),
        ((torch.zeros(2, 5),), "returns a tuple"),
    ],
)
def test_what_is_no_batch_of_logits_is_refused(returned, message):
    with serving(lambda batch: returned) as predict, pytest.raises(ModelError, match=message):
        predict(BATCH)


def test_numpy_logits_and_a_half_precision_model_are_taken():
    with serving(lambda batch: batch.numpy().mean(axis=(2, 3))) as predict:
        np.testing.assert_allclose(predict(BATCH), BATCH.mean((2, 3)).numpy())
    half = Net().eval().half()
    with serving(half) as predict:
        assert predict(BATCH).dtype == np.float32


def test_a_fingerprint_tells_weights_apart_and_repeats():
    net = Net()
    before = fingerprint(net)
    assert fingerprint(net) == before
    with torch.no_grad():
        net.head.bias[0] += 1
    assert fingerprint(net) != before
    assert fingerprint(load_model) != fingerprint(serving)


def _onnx_file(path, batch):
    weights = np.arange(6, dtype=np.float32).reshape(3, 2)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, 2], weights.ravel())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return weights


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_an_onnx_model_gives_its_logits_whatever_batch_it_was_exported_for(tmp_path, batch):
    weights = _onnx_file(tmp_path / "net.onnx", batch)
    model = load_model(f"onnx:{tmp_path / 'net.onnx'}")
    assert isinstance(model, OnnxModel)
    images = torch.cat([BATCH, BATCH + 1, BATCH + 2])[:5]
    with serving(model) as predict:
        np.testing.assert_allclose(predict(images), images.mean((2, 3)).numpy() @ weights, rtol=1e-5)


def test_the_users_function_is_called_without_arguments(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def make():\n    return lambda batch: batch.mean((2, 3))\ndef broken():\n    raise OSError('no disk')\n"
    )
    with serving(load_model(f"{file}:make")) as predict:
        assert predict(BATCH).shape == (2, 3)
    with pytest.raises(ModelError, match=r"broken\(\) failed: OSError: no disk"):
        load_model(f"{file}:broken")
    with pytest.raises(ModelError, match="has no function 'absent'"):
        load_model(f"{file}:absent")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "no model 'resnet18'"),
        ("timm:resnet18x", "timm has no model 'resnet18x' .did you mean 'resnet18'?"),
        ("timm:resnet18", "random weights"),
        ("onnx:/nowhere.onnx", "cannot be read"),
        ("no_such_module_here:make", "no module 'no_such_module_here'"),
        ("/nowhere.py:make", "does not exist"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_would_be_right(name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_timm_weights_from_a_file_must_fit(tmp_path, lite0):
    torch.save(lite0.state_dict(), tmp_path / "lite0.pth")
    loaded = load_model("timm:tf_efficientnet_lite0", weights=tmp_path / "lite0.pth")
    assert fingerprint(loaded) == fingerprint(lite0)
    with pytest.raises(ModelError, match=r"lite0\.pth belongs to another network"):
        load_model("timm:tf_mobilenetv3_small_100", weights=tmp_path / "lite0.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "lite0.pth").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model("timm:tf_efficientnet_lite0", weights=tmp_path / "torn.pth")
