"""Exported networks do what the network does, spike for spike."""

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from snasnet.export import Step, export_nir, export_onnx
from snasnet.networks import Neurons, SNASNet
from snasnet.specs import DatasetSpec

CELLS = ("0302 0030 3003 0000", "0301 0041 2000 0000", "0204 0010 0003 1000")


def lively(cell, head="paper"):
    """A network whose running averages are those of data, so that neurons fire."""
    return copy.deepcopy(_warmed_up(cell, head))


@functools.cache
def _warmed_up(cell, head):
    torch.manual_seed(0)
    model = SNASNet(cell, DatasetSpec(1, 8, 10), width=4, hidden=16, T=5, head=head)
    if model.hidden is not None:
        nn.init.normal_(model.hidden.weight, std=1.0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    for _ in range(10):
        model(torch.rand(16, 1, 8, 8))
    return model.eval()


@pytest.mark.parametrize("head", ["paper", "gap"])
@pytest.mark.parametrize("cell", CELLS[:2])
def test_one_step_after_the_other_gives_the_sequence(cell, head):
    model, x = lively(cell, head), torch.rand(4, 1, 8, 8)
    step = Step(model)
    states, outputs = step.rest(4), []
    with torch.no_grad():
        for _ in range(5):
            scores, *states = step(x, *states)
            outputs.append(scores)
        expected = model.forward_sequence(x)
    torch.testing.assert_close(torch.stack(outputs), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0


@pytest.mark.slow
def test_the_onnx_step_runs_as_the_network_does(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = lively(CELLS[0]), torch.rand(3, 1, 8, 8)
    export_onnx(model, tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "step.onnx")
    names = [each.name for each in session.get_inputs()]
    states, outputs = [state.numpy() for state in Step(model).rest(3)], []
    for _ in range(5):
        scores, *states = session.run(None, dict(zip(names, [x.numpy(), *states], strict=True)))
        outputs.append(scores)
    with torch.no_grad():
        expected = model.forward_sequence(x).numpy()
    np.testing.assert_allclose(np.stack(outputs), expected, rtol=1e-3, atol=1e-3)


def run(graph, x, steps):
    """A clocked reader of NIR: nodes in order of their forward edges; what comes from behind is a step old."""
    order = {name: number for number, name in enumerate(_sorted(graph))}
    incoming = {name: [source for source, target in graph.edges if target == name] for name in graph.nodes}
    old, v, spikes, outputs = {}, {}, {}, []
    for _ in range(steps):
        new = {}
        for name in order:
            node, kind = graph.nodes[name], type(graph.nodes[name]).__name__
            terms = [new[source] if order[source] < order[name] else old.get(source) for source in incoming[name]]
            terms = [term for term in terms if term is not None]
            total = sum(terms[1:], terms[0]) if terms else None
            new[name] = x if kind == "Input" else None if total is None else _apply(node, kind, name, total, v)
            if kind == "LIF" and new[name] is not None:
                spikes.setdefault(name, []).append(new[name])
        old = new
        outputs.append(new["output"])
    return torch.stack(outputs), spikes


def _apply(node, kind, name, x, v):
    if kind == "LIF":
        fields = {key: torch.from_numpy(getattr(node, key)) for key in ("tau", "r", "v_threshold")}
        before = v.get(name, torch.zeros_like(x))
        u = before + 1e-3 / fields["tau"] * (fields["r"] * x - before)
        fired = u > fields["v_threshold"]
        v[name] = torch.where(fired, 0.0, u)
        return fired.float()
    if kind == "Conv2d":
        pair = [tuple(map(int, np.ravel(each))) for each in (node.stride, node.padding, node.dilation)]
        pair = [each * 2 if len(each) == 1 else each for each in pair]
        return functional.conv2d(x, torch.from_numpy(node.weight), torch.from_numpy(node.bias), *pair, int(node.groups))
    if kind == "AvgPool2d":
        return functional.avg_pool2d(x, tuple(map(int, node.kernel_size)))
    if kind in ("Linear", "Affine"):
        return functional.linear(
            x, torch.from_numpy(node.weight), torch.from_numpy(node.bias) if kind == "Affine" else None
        )
    return x.flatten(1) if kind == "Flatten" else x * torch.from_numpy(node.scale) if kind == "Scale" else x


def _sorted(graph):
    """Nodes behind those that they read within a step; feedback leaves a later node of a cell for an earlier one."""
    feedback = {
        name
        for name in graph.nodes
        if (part := name.split("_")[1] if "_" in name else "") and "to" in part and part[0] > part[3]
    }
    edges = [(source, target) for source, target in graph.edges if source not in feedback]
    done = []
    while len(done) < len(graph.nodes):
        ready = [n for n in graph.nodes if n not in done and all(s in done for s, t in edges if t == n)]
        done += ready
    return done


@pytest.mark.parametrize("cell", CELLS[:2])
def test_the_nir_graph_spikes_as_the_network_does(cell, tmp_path):
    nir = pytest.importorskip("nir")
    model, x = lively(cell), torch.rand(4, 1, 8, 8)
    export_nir(model, tmp_path / "net.nir")
    graph = nir.read(tmp_path / "net.nir")
    seen = []
    for name in ("reduction_spike", "vector_spike", "hidden_spike"):
        getattr(model, name).register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        expected = model.forward_sequence(x)
    outputs, spikes = run(graph, x, 5)
    for name, theirs in zip(("reduction", "vector", "hidden"), seen, strict=True):
        assert torch.equal(torch.stack(spikes[name]), theirs.float()), name
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0
    assert sum(isinstance(module, Neurons) for module in model.modules()) == len(spikes)


def test_a_step_must_last(tmp_path):
    with pytest.raises(ValueError, match="dt must be positive, got 0"):
        export_nir(lively(CELLS[0]), tmp_path / "net.nir", dt=0.0)
