"""Other people's networks: converted, trained a step, made exact, compiled, and read from their files."""

import pytest
import torch
from torch import nn

from dynsparse import (
    CheckpointError,
    ConversionError,
    SDConv2d,
    SparsityController,
    compile_sparse,
    convert,
    diagnose,
    dynamic_layers,
    export_onnx,
    load_static,
    load_weights,
    sd_tiny,
)
from dynsparse.models import MODELS, VARIANTS, build

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")
onnxruntime = pytest.importorskip("onnxruntime")


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(16, 10, 1),
        nn.Flatten(),
    )


def names(model):
    return [name for name, _ in dynamic_layers(model)]


def test_stem_depthwise_and_head_are_left_out_by_default():
    assert names(convert(plain())) == ["3"]
    assert names(convert(plain(), skip=())) == ["0", "2", "3", "5"]
    assert names(convert(plain(), select="^(2|3)$", skip=())) == ["2", "3"]
    assert names(convert(plain(), select=lambda name, layer: layer.out_channels == 16)) == ["3"]


def test_the_model_itself_changes_only_in_place():
    model = plain()
    convert(model)
    assert not any(isinstance(each, SDConv2d) for each in model.modules())
    assert convert(model, inplace=True) is model
    assert isinstance(model[3], SDConv2d)


def test_without_noise_a_converted_network_computes_the_same():
    model, x = plain().eval(), torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(convert(model, noise=0.0)(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_stands_twice_is_converted_once():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = convert(nn.Sequential(shared, nn.ReLU(), shared), skip=())
    assert model[0] is model[2]


def test_models_without_a_convolution_to_convert_are_refused_with_the_candidates():
    with pytest.raises(ConversionError, match=r"the model has: 0 \(skipped\), 2 \(skipped\), 3, 5"):
        convert(plain(), select="nothing")
    with pytest.raises(ConversionError, match="the model has: none"):
        convert(nn.Sequential(nn.Linear(2, 2)))


FOREIGN = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "torchvision mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.35),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto", num_classes=7, depths=(1, 1, 1, 1)),
    "timm regnetx_002": lambda: timm.create_model("regnetx_002", num_classes=7),
}


def finalised(name):
    """A foreign network, converted, trained for one step and finalised, with images and what it makes of them."""
    torch.manual_seed(0)
    model = convert(FOREIGN[name](), num_kernels=2)
    controller = SparsityController(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(2, 3, 64, 64)
    loss = nn.functional.cross_entropy(model(x), torch.tensor([1, 2])) + controller.loss()
    loss.backward()
    assert all(layer.threshold.tau.grad.abs().sum() > 0 for _, layer in dynamic_layers(model))
    optimizer.step()
    report = controller.finalize(optimizer)
    assert report.sparsity == pytest.approx(0.8, abs=1e-4)
    with torch.inference_mode():
        return model.eval(), x, model(x)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_networks_run_sparse(name):
    model, x, expected = finalised(name)
    torch.testing.assert_close(compile_sparse(model, "scipy")(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_networks_run_in_onnx_runtime(name, tmp_path):
    model, x, expected = finalised(name)
    export_onnx(model, tmp_path / "model.onnx", (3, 64, 64))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["sd_tiny", "sd_mobilenet_v1", "sd_mobilenet_v2", "sd_resnet10"])
def test_every_network_of_the_zoo_in_every_variant(name, variant):
    torch.manual_seed(0)
    more = {"width": 0.25} if "mobilenet" in name else {}
    channels = 1 if name == "sd_tiny" else 3
    model = MODELS[name](variant, num_classes=5, in_channels=channels, **more)
    assert model.eval()(torch.randn(2, channels, 32, 32)).shape == (2, 5)
    again = build(model.config)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_resnets_have_torchvisions_sizes():
    for depth in (18, 34, 50):
        ours = MODELS[f"sd_resnet{depth}"]("static")
        theirs = getattr(torchvision.models, f"resnet{depth}")()
        assert {key: value.shape for key, value in ours.state_dict().items()} == {
            key: value.shape for key, value in theirs.state_dict().items()
        }


# --- weights from elsewhere


def test_static_weights_start_a_dynamic_network():
    static, dynamic = MODELS["sd_resnet10"]("static", num_classes=5), MODELS["sd_resnet10"]("sd", num_classes=5)
    load_static(dynamic, {f"module.{key}": value for key, value in static.state_dict().items()}, noise=0.0)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(dynamic.eval()(x), static.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: sd_tiny(num_kernels=2), "kernels"),
        (lambda: sd_tiny(mask_sharing="shared"), "shared|tau|threshold"),
        (lambda: sd_tiny(granularity="filter"), "granularity|tau|shape"),
        (lambda: sd_tiny("static"), "load_static|static|weight"),
        (lambda: sd_tiny("dy"), "threshold|dense|tau"),
        (lambda: sd_tiny(width=16), "shape"),
    ],
)
def test_weights_of_another_network_are_named(source, message):
    with pytest.raises(CheckpointError, match=message):
        load_weights(sd_tiny(), source().state_dict())


# --- diagnosis


def test_a_dead_router_is_reported():
    torch.manual_seed(0)
    model = sd_tiny()
    (_, first), (_, second), _ = dynamic_layers(model)
    with torch.no_grad():
        first.router.kernel_head.weight.zero_()
        second.router.kernel_head.bias.copy_(torch.tensor([100.0, 0, 0, 0]))
    rows = diagnose(model, [torch.randn(8, 1, 14, 14)])
    assert rows[0].uniform
    assert rows[0].entropy == pytest.approx(torch.log(torch.tensor(4.0)).item(), rel=1e-5)
    assert rows[0].max_prob == pytest.approx(0.25)
    assert not rows[1].uniform
    assert rows[1].entropy == pytest.approx(0.0, abs=1e-5)
    assert rows[1].max_prob == pytest.approx(1.0)
    with torch.no_grad():
        second.weight.copy_(second.weight[:1].expand_as(second.weight))
    assert diagnose(model, [torch.randn(8, 1, 14, 14)])[1].kernel_cosine == pytest.approx(1.0)
