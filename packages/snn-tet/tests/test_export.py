"""Graphs as an independent reader of NIR understands them: one frame after the other, forward Euler."""

import copy
import sys
from graphlib import TopologicalSorter

import nir
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from core_utils.errors import UserError
from core_utils.spiking.dynamics import Neuron
from core_utils.spiking.networks import LIF, SpikingNetwork, fuse_conv_bn, vgg_blocks
from core_utils.spiking.surrogates import rectangle
from snn_tet import export_nir, resnet19, sew_resnet34, tiny_vgg, vggsnn, vggsnn_woap
from snn_tet.networks import NEURON

OTHER = Neuron(decay=0.25, threshold=0.5, compare=">=", surrogate=rectangle())  # of arXiv 2203.06145


def simulate(graph, frames, dt):
    """Outputs [T, K] for frames [T, C, H, W], and the spikes of each layer of neurons [T, ...]."""
    before = {name: [one for one, other in graph.edges if other == name] for name in graph.nodes}
    order = list(TopologicalSorter(before).static_order())
    potential, spikes, outputs = {}, {}, []
    for frame in frames:
        value = {}
        for name in order:
            node = graph.nodes[name]
            x = frame if name == "input" else sum(value[source] for source in before[name])
            match node:
                case nir.Input() | nir.Output():
                    value[name] = x
                case nir.Conv2d():
                    weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
                    options = tuple(node.stride), tuple(node.padding), tuple(node.dilation), int(node.groups)
                    value[name] = functional.conv2d(x[None], weight, bias, *options)[0]
                case nir.AvgPool2d():
                    value[name] = functional.avg_pool2d(x, tuple(node.kernel_size), tuple(node.stride))
                case nir.Flatten():
                    value[name] = x.flatten(int(node.start_dim), int(node.end_dim))
                case nir.Affine():
                    value[name] = torch.from_numpy(node.weight) @ x + torch.from_numpy(node.bias)
                case nir.LIF() | nir.IF():
                    v = potential.get(name, np.zeros(node.r.shape, np.float32))
                    if isinstance(node, nir.LIF):
                        v = v + np.float32(dt) / node.tau * (node.v_leak - v + node.r * x.numpy())
                    else:
                        v = v + np.float32(dt) * node.r * x.numpy()
                    fires = v > node.v_threshold
                    potential[name] = np.where(fires, node.v_reset, v)
                    value[name] = torch.from_numpy(fires.astype(np.float32))
                    spikes.setdefault(name, []).append(value[name])
        outputs.append(value["output"])
    return torch.stack(outputs), {name: torch.stack(each) for name, each in spikes.items()}


def trained(model, frames):
    """With running averages and weights that make every layer spike, and not always."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # averages of all batches, here of one
        nn.init.constant_(norm.weight, 1.3)
    linear = [module for module in model.readout.modules() if isinstance(module, nn.Linear)]
    for layer in linear:
        nn.init.normal_(layer.weight)
    model(frames)
    return model.eval()


def stack(neuron, *, size, widths=(6, "AP", 8)):
    return SpikingNetwork(nn.Sequential(*vgg_blocks(2, widths, neuron)), nn.Linear(8 * (size // 2) ** 2, 5))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: tiny_vgg(), (2, 24, 24)),
        (lambda: vggsnn(size=16), (2, 16, 16)),
        (lambda: vggsnn_woap(size=16), (2, 16, 16)),
        (lambda: resnet19(), (3, 8, 8)),
        (lambda: stack(OTHER, size=8), (2, 8, 8)),
        (lambda: stack(Neuron(decay=1.0, input_scale=0.7), size=8), (2, 8, 8)),
    ],
    ids=["tiny_vgg", "vggsnn", "vggsnn_woap", "resnet19", "decay 1/4 and >=", "no leak"],
)
def test_a_reader_gets_the_same_spikes_from_the_file(tmp_path, network, shape):
    torch.manual_seed(0)
    model = trained(network(), torch.rand(3, 4, *shape))
    frames = torch.rand(4, *shape)
    expected = {}
    fused = fuse_conv_bn(model)
    for name, module in fused.named_modules():
        if isinstance(module, LIF):
            key = name.replace(".", "_")
            module.register_forward_hook(lambda _, inputs, out, key=key: expected.update({key: out[:, 0]}))
    with torch.no_grad():
        outputs = fused(frames[:, None])[:, 0]
    before = copy.deepcopy(model.state_dict())
    export_nir(model, tmp_path / "network.nir", shape=shape)
    graph = nir.read(tmp_path / "network.nir")
    found, spikes = simulate(graph, frames, graph.metadata["dt"])
    assert spikes.keys() == expected.keys()
    for name, each in expected.items():
        assert torch.equal(spikes[name], each), name
        assert 0 < each.mean() < 1
    torch.testing.assert_close(found, outputs, atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(found, model(frames[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_constants_of_the_paper_are_exact_in_nir(tmp_path):
    export_nir(tiny_vgg(), tmp_path / "network.nir", shape=(2, 24, 24), dt=1e-3)
    graph = nir.read(tmp_path / "network.nir")
    node = graph.nodes["blocks_0_spike"]
    assert node.tau.shape == (16, 24, 24)
    assert (node.r == 2).all()
    assert (np.float32(1e-3) / node.tau == 0.5).all()
    assert (node.v_threshold == 1).all()
    assert not node.v_leak.any()
    assert not node.v_reset.any()
    assert graph.metadata["dt"] == 1e-3
    assert list(graph.nodes["input"].input_type["input"]) == [2, 24, 24]
    assert list(graph.nodes["output"].output_type["output"]) == [10]
    assert [edge for edge in graph.edges if "output" in edge] == [("readout", "output")]


def test_at_least_becomes_more_than_the_next_smaller_number(tmp_path):
    export_nir(stack(OTHER, size=8), tmp_path / "network.nir", shape=(2, 8, 8))
    threshold = nir.read(tmp_path / "network.nir").nodes["blocks_0_spike"].v_threshold
    assert threshold.dtype == np.float32
    assert (threshold < 0.5).all()
    assert (np.nextafter(threshold, np.float32(1)) == 0.5).all()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: stack(Neuron(decay=0.5, reset="soft"), size=8), "no word for the soft reset"),
        (lambda: sew_resnet34(2), "no word for blocks_1_layer, MaxPool2d"),
        (lambda: stack(NEURON, size=10), r"frames of this size do not fit the network: readout is given \[128\]"),
        (lambda: resnet19(), r"blocks_0_conv is given \[2, 8, 8\]"),
    ],
)
def test_what_nir_cannot_say_is_refused_and_no_file_is_written(tmp_path, network, message):
    with pytest.raises(UserError, match=message):
        export_nir(network(), tmp_path / "network.nir", shape=(2, 8, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_step_without_duration_is_refused(tmp_path):
    with pytest.raises(UserError, match="dt must be positive, got 0"):
        export_nir(tiny_vgg(), tmp_path / "network.nir", shape=(2, 24, 24), dt=0.0)


def test_without_the_package_the_hint_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(UserError, match=r"pip install 'snn-tet\[nir\]'"):
        export_nir(tiny_vgg(), tmp_path / "network.nir", shape=(2, 24, 24))
