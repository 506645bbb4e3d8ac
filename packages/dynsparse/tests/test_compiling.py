"""Compiled networks: the same outputs, what each layer runs on and why, and what is refused."""

import pytest
import torch
from torch import nn

from dynsparse import ConfigError, SDConv2d, compile_sparse, dynamic_layers, sd_mobilenet_v1, sd_tiny
from dynsparse.runtime import native
from dynsparse.runtime.layer import SparseConv

needs_kernel = pytest.mark.skipif(not native.instruction_sets(), reason="installed without the compiled kernel")
BACKENDS = [pytest.param("native", marks=needs_kernel), "torch", "scipy", "dense", "auto"]


def finalised(model, sparsity=0.9):
    for _, layer in dynamic_layers(model):
        if layer.threshold is not None:
            layer.finalize(sparsity)
    return model.eval()


def with_statistics(model, x):
    """Batch norms that differ from their start."""
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(x)
    return model.eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["sd", "masked", "dy", "condconv", "odconv"])
def test_a_compiled_network_computes_the_same(variant, backend):
    torch.manual_seed(0)
    x = torch.randn(3, 1, 14, 14)
    model = finalised(with_statistics(sd_tiny(variant), x), 0.6)
    with torch.inference_mode():
        expected = model(x)
        compiled = compile_sparse(model, backend)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(x[:1]), expected[:1], rtol=1e-4, atol=1e-5)
        assert compiled(x[:0]).shape == (0, 10)


@needs_kernel
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernel_attends_as_the_router_does(router, temperature, threads):
    torch.manual_seed(0)
    layer = SDConv2d(37, 19, 3, padding=1, router=router)
    if router == "softmax":
        layer.router.temperature.fill_(temperature)
    nn.init.normal_(layer.router.kernel_head.bias)
    model, x = finalised(nn.Sequential(layer), 0.7), torch.randn(2, 37, 9, 11) + torch.arange(37.0)[:, None, None] / 9
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(compile_sparse(model, "native")(x), model(x).detach(), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@needs_kernel
def test_a_whole_network_runs_on_nonzeros():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    # Without its head, whose checked forward the tests' hook makes untraceable.
    network = sd_mobilenet_v1(width=0.25, num_classes=10, mask_sharing="shared").features
    model = finalised(with_statistics(network, x))
    compiled = compile_sparse(model, "native", example=x)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)
    reports = compiled.report()
    assert len(reports) == 26
    assert {choice.backend for report in reports for choice in report.choices} == {"native"}
    pointwise = [report for report in reports if report.union < 0.5]
    assert len(pointwise) == 13
    assert all(report.union == pytest.approx(0.1, abs=0.01) for report in pointwise)
    assert all(len(report.folded) == 2 for report in reports)  # batch norm and ReLU
    assert not any(isinstance(module, SDConv2d) for module in compiled.modules())
    assert any(isinstance(module, SDConv2d) for module in model.modules())  # a copy was compiled


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_static_convolution_takes_its_batch_norm(bias, affine):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9) * 2 + 1
    stem = nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8, affine=affine), nn.ReLU()
    twice = nn.BatchNorm2d(8)  # seen by more than one: stays
    model = finalised(with_statistics(nn.Sequential(*stem, SDConv2d(8, 8, 1), twice, nn.Conv2d(8, 8, 1), twice), x))
    if affine:
        nn.init.normal_(stem[1].weight)
        nn.init.normal_(stem[1].bias)
    compiled = compile_sparse(model)
    assert [type(module) for module in compiled.model][:2] == [nn.Conv2d, nn.Identity]
    assert sum(isinstance(module, nn.BatchNorm2d) for module in compiled.model) == 2
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model) == 3
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_static_convolution_that_computes_its_weight_keeps_its_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 9)
    stem = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 3))
    model = finalised(with_statistics(nn.Sequential(stem, nn.BatchNorm2d(8), SDConv2d(8, 8, 1)), x))
    compiled = compile_sparse(model)
    assert isinstance(compiled.model[1], nn.BatchNorm2d)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@needs_kernel
def test_weights_take_little_more_memory_than_their_nonzeros():
    torch.manual_seed(0)
    layer = SDConv2d(256, 256, 1, bias=False, mask_sharing="shared")
    (report,) = compile_sparse(finalised(nn.Sequential(layer)), "native").report()
    union = int(layer.masks().any(0).sum())
    assert report.weight_bytes <= 1.1 * (4 * 4 + 4) * union


@needs_kernel
def test_no_dense_kernel_is_formed(monkeypatch):
    """Nothing of B |W| floats, nor of one |W|, is allocated while a compiled layer runs."""
    torch.manual_seed(0)
    model = compile_sparse(finalised(nn.Sequential(SDConv2d(64, 64, 3, padding=1, mask_sharing="shared"))), "native")
    x = torch.randn(8, 64, 4, 4)
    with torch.inference_mode():
        model(x)
        with torch.profiler.profile(profile_memory=True) as profiler:
            model(x)
    largest = max((event.cpu_memory_usage for event in profiler.events()), default=0)
    assert largest < 4 * 64 * 64 * 9


def test_auto_says_why_and_takes_what_is_there(monkeypatch):
    torch.manual_seed(0)
    model, x = finalised(nn.Sequential(SDConv2d(16, 16, 1))), torch.randn(1, 16, 6, 6)
    monkeypatch.setattr("dynsparse.runtime.native.instruction_sets", tuple)
    compiled = compile_sparse(model, min_gain=0.0, example=x)
    (report,) = compiled.report()
    (choice,) = report.choices
    assert choice.backend in ("mkl", "torch")
    assert "native: the compiled kernel is not installed" in choice.reason
    assert f"{choice.backend} is " in str(report)
    with pytest.raises(RuntimeError, match="installed without its compiled kernel"):
        compile_sparse(model, "native")


def test_auto_is_never_slower_than_dense_by_its_own_clock():
    torch.manual_seed(0)
    model, x = finalised(nn.Sequential(SDConv2d(4, 4, 3)), 0.1), torch.randn(1, 4, 6, 6)
    (report,) = compile_sparse(model, min_gain=1e9, example=x).report()
    assert report.choices[0].backend.startswith("dense")
    assert "below min_gain=1e+09" in report.choices[0].reason


def test_layers_that_cannot_be_packed_are_left_and_named():
    torch.manual_seed(0)
    reports = compile_sparse(sd_tiny("odconv").eval()).report()
    assert {report.reason for report in reports} == {"ODConv scales positions and channels for each sample"}
    assert "left as it was" in str(reports[0])
    (report,) = compile_sparse(finalised(nn.Sequential(SDConv2d(2, 2, 1))).double()).report()
    assert "its weights are torch.float64" in report.reason


def test_models_that_still_train_are_refused():
    with pytest.raises(
        RuntimeError, match=r"the masks of layer 'features.1.0' still learn; call controller.finalize\(\) first"
    ):
        compile_sparse(sd_tiny().eval())
    with pytest.raises(RuntimeError, match="the model is in training mode"):
        compile_sparse(finalised(sd_tiny()).train())
    with pytest.raises(ConfigError, match="backend is one of"):
        compile_sparse(finalised(sd_tiny()), "cuda")


def test_a_compiled_model_does_not_train():
    torch.manual_seed(0)
    compiled = compile_sparse(finalised(sd_tiny()), "scipy")
    with pytest.raises(RuntimeError, match="cannot train"):
        compiled.train()
    x = torch.randn(1, 1, 14, 14, requires_grad=True)
    with pytest.raises(RuntimeError, match="no backward pass"):
        compiled(x).sum().backward()
    (layer, *_) = [module for module in compiled.modules() if isinstance(module, SparseConv)]
    with pytest.raises(TypeError, match=r"takes torch\.float32"):
        layer(torch.zeros(1, 8, 14, 14, dtype=torch.float64))
