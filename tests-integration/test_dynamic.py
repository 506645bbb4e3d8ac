"""dynsparse's networks, their masks final, on mqbench-lite's grids: what of them runs on integers, and what is refused.

One masked kernel a layer is an ordinary convolution, and exact. Of the forms of dynamic convolution, "mix_outputs" has a
place in files, and is equal to its simulation but for ONNX Runtime's averages, which its routers run in float; "grouped",
which is the usual one, has none, and the message says which layer it is.
"""

import numpy as np
import pytest
import torch

import dynsparse
import mqbench_lite as mqb
from mqbench_lite.host import host

PROFILE = host().profile("onnxruntime")  # 7-bit weights at the ends where 8-bit products overflow
SPARSITY = 0.8
CONVERTED = 8  # convolutions of the residual net but for its stem


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.randn(64, 1, 28, 28)


def sparse(**settings):
    """The residual net with dynamic convolutions at exactly the sparsity, and their layers by name."""
    torch.manual_seed(0)
    net = dynsparse.convert(mqb.networks.get("residual").eval(), **settings)
    dynsparse.SparsityController(net, SPARSITY).finalize()
    layers = dict(dynsparse.dynamic_layers(net))
    assert len(layers) == CONVERTED
    assert all(layer.frozen for layer in layers.values())
    return net, layers


def quantised(net, images):
    qm = mqb.prepare(net, profile=PROFILE, example_inputs=(images[:2],), algorithm="minmax")
    return mqb.calibrate(qm, images.split(16)).eval()


def on_integers(qm, images, file):
    (found,) = mqb.verify(qm, mqb.export(qm, file), engines=["onnxruntime"], data=[images]).engines
    assert found.layers == 1.0  # of all layers with weights, routers included
    return found


def test_masked_convolutions_are_exact_in_onnx_runtime_and_keep_their_zeros(images, tmp_path):
    net, layers = sparse(num_kernels=1)
    qm = quantised(net, images)
    found = on_integers(qm, images, tmp_path / "net.onnx")
    assert (found.differing, found.logits) == (0, 640)
    frozen = qm.freeze().layers
    for name, layer in layers.items():
        (codes,) = (each.weight for path, each in frozen.items() if path.startswith(f"{name}."))
        kept = layer.masks()[0].numpy()
        assert kept.mean() == pytest.approx(1 - SPARSITY, abs=0.5 / kept.size)
        assert not codes[~kept].any()
        assert np.count_nonzero(codes) > 0.8 * kept.sum()  # small weights round to nought as well


def test_dynamic_convolutions_that_mix_outputs_run_on_integers(images, tmp_path):
    net, layers = sparse(form="mix_outputs")
    qm = quantised(net, images)
    found = on_integers(qm, images, tmp_path / "net.onnx")
    weights = [f"{name}.{part}" for name in layers for part in ("router.squeeze", "router.kernel_head")]
    assert set(weights) <= set(qm.freeze().layers)
    assert {name.rpartition("/")[2] for name in found.coverage.floating} == {"ReduceMean"}
    with torch.inference_mode():
        outputs = net(images)
        error = float((qm(images) - outputs).abs().max())
    assert error < 0.05 * float(outputs.std())
    assert found.max_difference < error
    assert found.top1 > 0.9


def test_dynamic_convolutions_of_the_usual_form_are_refused_with_the_layers_name(images):
    net, layers = sparse()
    first = next(iter(layers))
    with pytest.raises(mqb.UnsupportedOpError, match="has no place in") as refused:
        quantised(net, images)
    assert str(refused.value).startswith(f"conv2d.default at {first}.conv2d has no place in {PROFILE} ")
    assert "\n" not in str(refused.value)
