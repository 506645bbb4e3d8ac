"""Any model as a graph whose values are the model's."""

import collections
import math
from pathlib import Path

import jaxtyping
import pytest
import torch
from nets import Function, OfTwo, awake, conv, depthwise, images, residual
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- its name everywhere

from mqbench_lite.capture import capture, evaluate
from mqbench_lite.errors import TraceError
from mqbench_lite.tracing import trace


def traced(model, args):
    """The second way; type checks at run time do not take fx's stand-ins for tensors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return trace(model.eval(), args)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


WAYS = pytest.mark.parametrize("way", [capture, traced], ids=["export", "fx"])


def names(captured, *ops):
    return [node.name for node in captured.graph if not ops or node.op in ops]


def same(captured, model, *args):
    from torch.utils import _pytree as pytree

    with torch.no_grad():
        expected = pytree.tree_leaves(model.eval()(*(each.clone() for each in args)))
        found = evaluate(captured, args)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@WAYS
def test_the_residual_net_is_captured_under_its_modules_names(way):
    captured = way(residual(), (images(2),))
    same(captured, residual(), images(5))  # another number of samples
    assert names(captured)[:5] == ["x", "stem.0", "stem.1", "stem.2", "blocks.0.conv1"]
    assert names(captured)[-3:] == ["blocks.2.relu2", "mean", "fc"]
    assert collections.Counter(node.op for node in captured.graph) == {
        "input": 1,
        "conv": 9,
        "batch_norm": 9,
        "relu": 7,
        "add": 3,
        "mean": 1,
        "linear": 1,
    }
    assert captured.graph["blocks.1.add"].inputs == ("blocks.1.bn2", "blocks.1.shortcut.1")
    assert captured.shapes == {"x": (-1, 1, 28, 28)}
    assert captured.sizes["blocks.1.conv1"] == (-1, 32, 7, 7)
    assert captured.graph["blocks.1.conv1"].attributes == {
        "stride": (2, 2),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    assert captured.graph["mean"].attributes == {"axes": (2, 3), "keep": False}


@WAYS
def test_a_clip_and_groups_are_captured(way):
    captured = way(depthwise(), (images(2),))
    same(captured, depthwise(), images(3))
    assert captured.graph["blocks.1.filter.2"].attributes == {"low": 0.0, "high": 6.0}
    assert captured.graph["blocks.1.filter.0"].attributes["groups"] == 64
    assert captured.graph["blocks.0.add"].inputs == ("stem.2", "blocks.0.narrow.1")


def test_a_node_says_where_in_the_users_code_it_was_called():
    captured = capture(residual(), (images(2),))
    file, line = captured.graph["blocks.0.add"].source.rsplit(":", 1)
    assert file.endswith("mqbench_lite/networks.py")
    assert "inner + self.shortcut(x)" in Path(file).read_text().splitlines()[int(line) - 1]


def test_capturing_leaves_the_model_and_the_random_state_alone():
    model = residual().train()
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    captured = capture(model, (images(1),))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert captured.tensors["stem.0.weight"] is not model.stem[0].weight


@WAYS
def test_a_module_called_twice_has_one_set_of_numbers_and_two_nodes(way):
    model = Function(lambda m, x: m.conv(torch.relu(m.conv(x))), conv=conv())
    captured = way(model, (images(2, 4, 8, 8),))
    assert names(captured, "conv") == ["conv", "conv#2"]
    assert set(captured.tensors) == {"conv.weight", "conv.bias"}
    same(captured, model, images(3, 4, 8, 8))


@WAYS
def test_functional_layers_are_named_after_their_weight(way):
    model = Function(
        lambda m, x: F.linear(F.conv2d(x, m.kernel, stride=2).flatten(1), m.matrix, m.shift),
        kernel=nn.Parameter(torch.randn(4, 2, 3, 3)),
        matrix=nn.Parameter(torch.randn(5, 36)),
        shift=nn.Parameter(torch.randn(5)),
    )
    captured = way(model, (images(2, 2, 8, 8),))
    assert names(captured) == ["x", "kernel", "flatten", "matrix"]
    same(captured, model, images(3, 2, 8, 8))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = conv(), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.conv(x)
        y += x
        self.relu(y)  # its result is not used, but y is another from here on
        y.mul_(2.0)
        return y + x


@WAYS
def test_what_is_written_in_place_is_read_afterwards(way):
    model = InPlace()
    captured = way(model, (images(2, 4, 8, 8),))
    assert [node.op for node in captured.graph if node.op not in ("input", "constant")] == [
        "conv",
        "add",
        "relu",
        "mul",
        "add",
    ]
    same(captured, model, images(3, 4, 8, 8))


class WritesToView(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        y = self.conv(x)
        flat = y.view(y.size(0), -1)
        y.mul_(2.0)
        return flat


def test_a_write_behind_a_views_back_is_seen_by_export_and_refused_by_fx():
    model = WritesToView()
    same(capture(model, (images(2, 4, 8, 8),)), model, images(3, 4, 8, 8))
    with pytest.raises(TraceError, match="views"):
        trace(model.eval(), (images(2, 4, 8, 8),))


@WAYS
def test_structures_of_outputs_and_a_free_batch_are_kept(way):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x):
            y = self.conv(x)
            first, second = y.chunk(2, dim=1)
            return {"flat": y.view(y.size(0), -1), "parts": (first, second), "cat": torch.cat([y, x], 1)}

    model = Heads()
    captured = way(model, (images(2, 4, 8, 8),))
    same(captured, model, images(7, 4, 8, 8))
    assert len(captured.graph.outputs) == 4
    assert captured.outputs.unflatten(range(4)) == {"flat": 0, "parts": (1, 2), "cat": 3}
    (reshape,) = (node for node in captured.graph if node.op == "reshape")
    assert reshape.attributes["shape"] == (-1, 256)
    assert names(captured, "call") == []


OPERATIONS = {
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "silu": (F.silu, "silu"),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
    "hardswish": (F.hardswish, "hardswish"),
    "hardsigmoid": (F.hardsigmoid, "hardsigmoid"),
    "tanh": (torch.tanh, "tanh"),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), "clip"),
    "clamp from below": (lambda x: x.clamp(min=0), "relu"),
    "relu6": (F.relu6, "clip"),
    "softmax": (lambda x: x.softmax(-1), "softmax"),
    "matmul": (lambda x: x @ x.transpose(2, 3), "matmul"),
    "number": (lambda x: 2 - x / 3, "sub"),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1), "max_pool"),
    "avg pool": (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), "avg_pool"),
    "global pool": (lambda x: F.adaptive_avg_pool2d(x, 1), "mean"),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 4), "avg_pool"),
    "global max pool": (lambda x: F.adaptive_max_pool2d(x, 1), "max_pool"),
    "permute": (lambda x: x.permute(0, 2, 3, 1), "permute"),
    "squeeze": (lambda x: x[:, :1].squeeze(1), "squeeze"),
    "unsqueeze": (lambda x: x.unsqueeze(1), "unsqueeze"),
    "slice": (lambda x: x[:, 1:3], "slice"),
    "split": (lambda x: x.split([1, 3], 1)[1], "slice"),
    "unbind": (lambda x: x.unbind(1)[2], "squeeze"),
    "stack": (lambda x: torch.stack([x, x], 1), "concat"),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1)), "pad"),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), "resize"),
    "bilinear": (lambda x: F.interpolate(x, size=(12, 10), mode="bilinear"), "resize"),
    "flatten": (lambda x: x.flatten(1), "flatten"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "matmul"),
    "other": (lambda x: torch.sin(x), "call"),
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations_become_the_graphs_own(case):
    function, op = OPERATIONS[case]
    model = Function(lambda m, x: function(m.conv(x)), conv=conv())
    captured = capture(model, (images(2, 4, 8, 8),))
    assert op in {node.op for node in captured.graph}
    if op != "call":
        assert names(captured, "call") == []
    same(captured, model, images(3, 4, 8, 8))


FX = ["sigmoid", "gelu", "clamp", "relu6", "matmul", "number", "max pool", "avg pool", "global pool", "split", "pad"]


@pytest.mark.parametrize("case", [*FX, "nearest", "flatten", "stack", "permute", "other"])
def test_the_second_way_gives_the_same_operations(case):
    function, op = OPERATIONS[case]
    model = Function(lambda m, x: function(m.conv(x)), conv=conv()).eval()
    captured = trace(model, (images(2, 4, 8, 8),))
    assert op in {node.op for node in captured.graph}
    same(captured, model, images(3, 4, 8, 8))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding="valid", groups=2),
        nn.Conv2d(4, 6, 3, padding="same", dilation=2),
        nn.Conv2d(4, 6, 4, padding="same"),  # one more at the end: a pad of its own
        nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    ],
    ids=str,
)
def test_layers_of_any_geometry(layer):
    captured = capture(nn.Sequential(layer), (images(2, 4, 8, 8),))
    same(captured, nn.Sequential(layer), images(3, 4, 8, 8))
    assert captured.graph["0"].op in ("conv", "conv_transpose")
    before = {"0.pad": "pad", "0.call": "call"}
    assert all(
        before.get(node.name) == node.op for node in captured.graph if node.op not in ("input", captured.graph["0"].op)
    )


def test_what_depends_on_nothing_given_is_computed_at_once():
    model = Function(
        lambda m, x: F.linear(x, m.w / m.w.norm(dim=1, keepdim=True)) + torch.arange(3.0),
        w=nn.Parameter(torch.randn(3, 4)),
    )
    captured = capture(model, (images(2, 4),))
    assert [node.op for node in captured.graph if node.op != "input"] == ["constant", "linear", "add"]
    same(captured, model, images(5, 4))


def test_a_transformer_layer_is_captured_without_functions_that_cannot_be_quantised():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    captured = capture(layer, (images(2, 5, 16),))
    same(captured, layer, images(3, 5, 16))
    ops = collections.Counter(node.op for node in captured.graph)
    assert ops["call"] == 0
    assert (ops["linear"], ops["matmul"], ops["softmax"], ops["layer_norm"]) == (4, 2, 1, 2)


def test_several_inputs_keep_their_order():
    model = OfTwo(lambda m, x, y: m.conv(x) - y, conv=conv())
    captured = capture(model, (images(2, 4, 8, 8), images(2, 4, 8, 8, seed=2)))
    same(captured, model, images(3, 4, 8, 8), images(3, 4, 8, 8, seed=5))
    assert len(captured.graph.inputs) == 2


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.odd = Odd()

    def forward(self, x):
        return self.odd(self.inner(x))


class Odd(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_control_flow_is_refused_with_the_line_and_the_way_out():
    with pytest.raises(TraceError, match=r"test_capture.py:\d+") as raised:
        capture(Branches(), (images(2, 4),))
    assert "leaves" in str(raised.value)
    line = int(str(raised.value).split("test_capture.py:")[1].split(":")[0])
    assert "if x.sum() > 0:" in Path(__file__).read_text().splitlines()[line - 1]
    captured = capture(Branches(), (images(2, 4),), leaves=["odd"])
    assert [(node.name, node.op) for node in captured.graph if node.op != "input"] == [
        ("inner.0", "linear"),
        ("odd", "call"),
    ]


def test_wrong_requests_are_refused():
    with pytest.raises(TraceError, match="no module has this name"):
        capture(Branches(), (images(2, 4),), leaves=["none.*"])
    with pytest.raises(TraceError, match="example_inputs"):
        capture(Branches(), ())
    two = Function(lambda m, x: (m.conv(x), F.conv2d(x, m.conv.weight, stride=2)), conv=conv(bias=False))
    with pytest.raises(TraceError, match="one weight is used with two"):
        capture(two, (images(2, 4, 8, 8),))
    with pytest.raises(TraceError, match=r"returns no tensor|return tensors"):
        capture(Function(lambda m, x: 3, conv=conv()), (images(2, 4, 8, 8),))


def test_random_results_are_not_taken_for_constants():
    model = Function(lambda m, x: m.conv(x) + torch.rand(8), conv=conv())
    with pytest.raises(TraceError, match="other values than the model"):
        capture(model, (images(2, 4, 8, 8),))


def test_tied_weights_stay_one_parameter():
    model = Function(lambda m, x: m.b(torch.relu(m.a(x))), a=conv(), b=conv())
    model.b.weight = model.a.weight
    captured = capture(model, (images(2, 4, 8, 8),))
    assert names(captured, "conv") == ["a", "b"]
    assert captured.tensors["a.weight"] is captured.tensors["b.weight"]


def test_infinite_ends_of_a_clip_are_kept():
    model = Function(lambda m, x: m.conv(x).clamp(max=1.0), conv=conv())
    captured = capture(model, (images(2, 4, 8, 8),))
    assert captured.graph["clamp"].attributes == {"low": -math.inf, "high": 1.0}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", pytest.param("googlenet", marks=pytest.mark.slow)])
def test_torchvisions_nets(name):
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False} if name == "googlenet" else {}
    model = awake(models.get_model(name, weights=None, **options))
    captured = capture(model, (images(2, 3, 32, 32),))
    assert names(captured, "call") == []
    same(captured, model, images(3, 3, 32, 32))
    counts = {"resnet18": 20, "mobilenet_v2": 52, "googlenet": 57}
    assert len(names(captured, "conv")) == counts[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_tiny_patch16_224"])
def test_timms_nets(name):
    timm = pytest.importorskip("timm")
    model = awake(timm.create_model(name, pretrained=False))
    size = 224 if name.endswith("224") else 64
    captured = capture(model, (images(2, 3, size, size),))
    same(captured, model, images(3, 3, size, size))
    assert names(captured, "conv")
