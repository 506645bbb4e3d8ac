"""A prepared model: what it simulates, what it freezes to, and that nothing of it is lost."""

import copy
import logging

import numpy as np
import pytest
import torch
from nets import Function, OfTwo, awake, conv, depthwise, images, residual
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- its name everywhere

from mqbench_lite import algorithms, profiles
from mqbench_lite.calibration import calibrate
from mqbench_lite.errors import ExportError, MQBenchError, NotCalibratedError, ProfileError, UnsupportedOpError
from mqbench_lite.graph import LAYERS
from mqbench_lite.onnx_files import to_onnx
from mqbench_lite.preparing import prepare

X = images(32)


def ready(model=None, profile="onnxruntime", x=X, **options):
    options = {"algorithm": "minmax", **options}
    qm = prepare(model or residual(), profile=profile, example_inputs=(x[:2],), **options)
    return calibrate(qm, [x[:16], x[16:]])


def run(model, x=X):
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(
    ("net", "profile"),
    [(residual, name) for name in profiles.names() if "avx2" not in name]
    + [(depthwise, name) for name in ("academic", "tvm", "onnxruntime-avx2", "xnnpack")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_simulation_and_integers_are_near_the_float_model(net, profile):
    model = net()
    qm = prepare(model, profile=profile, example_inputs=(X[:2],), algorithm="minmax")
    expected = run(model)
    torch.testing.assert_close(run(qm), expected, rtol=1e-5, atol=1e-6)  # no range, no rounding
    calibrate(qm, [X])
    simulated, exact = run(qm), run(qm.to_integer())
    assert 0 < (simulated - expected).abs().mean() < 0.2 * expected.std()  # powers of two are the coarsest
    # rounding at edges alone; the spec measured 6.7e-5 on a trained net
    assert float((exact - simulated).abs().mean()) < 0.02 * expected.std()
    assert (exact.argmax(1) == simulated.argmax(1)).float().mean() > 0.9


def by_hand(qm, frozen, x):
    """The residual net from frozen numbers alone, in float64."""
    values = {}
    for node in frozen.graph:
        inputs = [values[name] for name in node.inputs]
        if node.op == "input":
            values[node.name] = x.double()
        elif node.op == "quantize":
            grid = frozen.grids[node.name]
            codes = torch.round(inputs[0] / float(grid.scale)) + int(grid.zero_point)
            values[node.name] = (codes.clamp(grid.qmin, grid.qmax) - int(grid.zero_point)) * float(grid.scale)
        elif node.op in LAYERS:
            layer = frozen.layers[node.name]
            scale = torch.tensor(layer.grid.scale).double()
            weight = torch.tensor(layer.weight).double() * scale.view(-1, *[1] * (layer.weight.ndim - 1))
            bias = torch.tensor(layer.bias).double() * scale * float(frozen.grids[node.inputs[0]].scale)
            if node.op == "linear":
                values[node.name] = F.linear(inputs[0], weight, bias)
            else:
                of = node.attributes
                values[node.name] = F.conv2d(inputs[0], weight, bias, of["stride"], of["padding"])
        elif node.op == "relu":
            values[node.name] = inputs[0].relu()
        elif node.op == "add":
            values[node.name] = inputs[0] + inputs[1]
        else:
            values[node.name] = inputs[0].mean((2, 3))
    return values[frozen.graph.outputs[0]]


def test_frozen_numbers_are_those_of_the_simulation():
    qm = ready(bn_fold=0)
    frozen = qm.freeze()
    layer, module = frozen.layers["blocks.1.conv1"], qm.layers["blocks.1.conv1"]
    assert layer.weight.dtype == np.int8
    assert layer.bias.dtype == np.int32
    assert (layer.grid.qmin, layer.grid.qmax, layer.grid.axis) == (-128, 127, 0)
    quantised = module.weight_quantizer(module.weight).detach().numpy()
    np.testing.assert_array_equal(layer.weight.astype(np.float32) * layer.grid.scale[:, None, None, None], quantised)
    step = frozen.grids["Q:blocks.0.relu2"].scale * layer.grid.scale
    np.testing.assert_array_equal(layer.bias, np.round(module.bias.detach().numpy() / step))
    difference = (by_hand(qm, frozen, X) - run(qm)).abs()
    assert float(difference.mean()) < 1e-3
    assert frozen.grids["Q:x"].scale.shape == ()
    assert frozen.storage == "u8"
    assert frozen.shapes == {"x": (-1, 1, 28, 28)}


def test_the_simulations_bias_is_the_frozen_one():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 169, 10))
    qm = ready(model)
    frozen = qm.freeze()
    grid, layer = frozen.grids["Q:input"], frozen.layers["0"]
    q = qm.act_quantizers["Q:input"](X)
    step = torch.tensor(grid.scale * layer.grid.scale)
    expected = F.conv2d(q, qm.layers["0"].weight_quantizer(qm.layers["0"].weight), torch.tensor(layer.bias) * step, 2)
    torch.testing.assert_close(qm.layers["0"](q, torch.tensor(grid.scale)), expected)
    kept = ready(model, profile="academic").freeze().layers["0"]
    assert kept.bias.dtype == np.float32
    np.testing.assert_array_equal(kept.bias, model[0].bias.detach().numpy())


@pytest.mark.parametrize("strategy", [1, 2, 3, 4])
def test_strategies_agree_in_evaluation_and_freeze_alike(strategy):
    merged, other = ready(bn_fold=0, algorithm="lsq"), ready(bn_fold=strategy, algorithm="lsq")
    assert (other.layers["stem.0"].folded_norm is None) == (strategy == 0)
    torch.testing.assert_close(run(other), run(merged), rtol=1e-3, atol=2e-3)
    a, b = merged.freeze().layers["blocks.2.conv2"], other.freeze().layers["blocks.2.conv2"]
    np.testing.assert_allclose(a.grid.scale, b.grid.scale, rtol=1e-4)
    assert np.abs(a.weight.astype(int) - b.weight).max() <= 1
    assert (a.weight == b.weight).mean() > 0.999


def test_normalisations_stay_where_the_profile_does_not_fold():
    qm = ready(profile="academic")
    assert qm.graph["stem.1"].op == "batch_norm"
    frozen = qm.freeze()
    np.testing.assert_array_equal(frozen.constants["stem.1.mean"], residual().stem[1].running_mean)
    assert {"stem.1.weight", "stem.1.bias", "stem.1.var"} < set(frozen.constants)
    with pytest.raises(ProfileError, match="folds batch normalisation"):
        prepare(residual(), profile="tvm", example_inputs=(X[:2],), bn_fold=-1)


def test_every_parameter_learns():
    qm = prepare(residual(), profile="onnxruntime", example_inputs=(X[:2],), algorithm="lsq", act_bits=4, weight_bits=4)
    calibrate(qm, [X])
    qm.train()
    F.cross_entropy(qm(X), torch.arange(32) % 10).backward()
    without = [name for name, value in qm.named_parameters() if value.grad is None]
    assert without == []
    assert all(bool(value.grad.isfinite().all()) for value in qm.parameters())
    before = run(qm.eval())
    torch.optim.SGD(qm.parameters(), 0.01).step()
    assert not torch.equal(run(qm), before)


def test_modules_bear_the_users_names_and_blocks_their_classes():
    qm = ready()
    paths = dict(qm.net.named_modules())
    assert {"stem.0", "stem.0.weight_quantizer", "stem.Q:2", "blocks.1.shortcut.Q:0", "Q:x", "Q:mean"} < set(paths)
    assert isinstance(paths["blocks.1.shortcut.0"], nn.Conv2d)
    assert isinstance(paths["fc"], nn.Linear)
    assert type(paths["blocks.1"]).__name__ == "ResidualBlock"
    called = []
    for path, module in paths.items():
        module.register_forward_hook(lambda *_, path=path: called.append(path))
    run(qm)
    assert called.index("blocks.0.conv1") < called.index("blocks.0.Q:relu2") < called.index("blocks.0")
    assert sorted(called) == sorted(set(called))  # each once
    assert set(paths) - set(called) == set()


def test_a_reused_block_is_not_called_as_one_but_runs():
    block = nn.Sequential(conv(), nn.ReLU())
    model = Function(lambda m, x: m.block(m.other(m.block(x))), block=block, other=conv())
    qm = ready(model, x=images(32, 4, 8, 8))
    difference = run(qm, images(5, 4, 8, 8)) - run(model, images(5, 4, 8, 8))
    assert float(difference.abs().max()) < 0.05
    frozen = qm.freeze()
    first, second = frozen.layers["block.0"], frozen.layers["block.0#2"]
    np.testing.assert_array_equal(first.weight, second.weight)
    assert not np.array_equal(first.bias, second.bias)  # other inputs, other steps
    torch.testing.assert_close(run(qm.to_integer(), images(5, 4, 8, 8)), run(qm, images(5, 4, 8, 8)), atol=0.02, rtol=0)


def test_the_users_modules_may_have_any_name():
    class Awkward(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([conv(), conv()])
            self.graph, self.bits, self.constants = conv(), conv(), conv()

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).relu()
            return self.constants(self.bits(self.graph(x)))

    model, x = Awkward(), images(32, 4, 8, 8)
    qm = ready(model, x=x)
    assert [each.name for each in qm.bits] == ["layers.0", "layers.1", "graph", "bits", "constants"]
    assert float((run(qm, x) - run(model, x)).abs().max()) < 0.05


def test_a_copy_is_whole_and_apart():
    qm = ready()
    twin = copy.deepcopy(qm)
    assert torch.equal(run(twin), run(qm))
    with torch.no_grad():
        for value in twin.parameters():
            value.mul_(1.5)
    assert not torch.equal(run(twin), run(qm))
    assert twin.layers["fc"] is twin.net.fc
    assert twin.act_quantizers["Q:x"] is not qm.act_quantizers["Q:x"]


def test_saving_and_loading_gives_the_same_numbers(tmp_path):
    qm = ready(algorithm="lsq", profile="academic", weight_bits=4, act_bits=4)
    qm.save(tmp_path / "model.safetensors")
    other = prepare(
        residual(seed=5), profile="academic", example_inputs=(X[:2],), algorithm="lsq", weight_bits=4, act_bits=4
    )
    other.load(tmp_path / "model.safetensors")
    assert torch.equal(run(other.eval()), run(qm.eval()))
    ours, theirs = qm.freeze(), other.freeze()
    for name, layer in ours.layers.items():
        np.testing.assert_array_equal(layer.weight, theirs.layers[name].weight)
    for name, grid in ours.grids.items():
        assert (grid.qmin, grid.qmax) == (theirs.grids[name].qmin, theirs.grids[name].qmax)


def test_a_file_of_another_model_or_a_torn_one_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    ready().save(file)
    with pytest.raises(MQBenchError, match="another network, profile"):
        prepare(residual(), profile="tvm", example_inputs=(X[:2],), algorithm="minmax").load(file)
    with pytest.raises(MQBenchError, match="another network, profile"):
        prepare(residual(), profile="onnxruntime", example_inputs=(X[:2],), algorithm="minmax", act_bits=7).load(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MQBenchError, match="torn"):
        ready().load(file)
    with pytest.raises(MQBenchError, match="cannot be read"):
        ready().load(tmp_path / "none.safetensors")


def test_the_table_says_what_every_layer_has():
    qm = prepare(
        residual(),
        profile="onnxruntime",
        example_inputs=(X[:2],),
        algorithm="minmax",
        weight_bits=4,
        act_bits=5,
        overrides={"blocks.1.*": {"weight_bits": 3}, "blocks.2.conv1": {"weight_bits": None, "act_bits": None}},
    )
    bits = {each.name: (each.weight_bits, each.act_bits) for each in qm.bits}
    assert bits == {
        "stem.0": (8, 8),
        "blocks.0.conv1": (4, 5),
        "blocks.0.conv2": (4, 5),
        "blocks.1.conv1": (3, 5),
        "blocks.1.conv2": (3, 5),
        "blocks.1.shortcut.0": (3, 5),
        "blocks.2.conv1": (None, None),
        "blocks.2.conv2": (4, 5),
        "blocks.2.shortcut.0": (4, 5),
        "fc": (8, 8),
    }
    lines = qm.table().splitlines()
    assert lines[4].split() == ["blocks.1.conv1", "conv", "3", "5", "Q:blocks.0.relu2"]
    assert lines[7].split() == ["blocks.2.conv1", "conv", "float", "float", "-"]
    grids = {each.name: each.weight_codes for each in qm.bits}
    assert grids["blocks.1.conv1"] == (-4, 3)
    calibrate(qm, [X])
    frozen = qm.freeze()
    assert frozen.layers["blocks.2.conv1"].grid is None
    assert frozen.layers["blocks.1.conv1"].weight.min() >= -4
    assert run(qm).isfinite().all()


def test_uncalibrated_models_are_not_frozen():
    qm = prepare(residual(), profile="onnxruntime", example_inputs=(X[:2],))
    with pytest.raises(NotCalibratedError, match=r"the weight of stem.0"):
        qm.freeze()
    with pytest.raises(NotCalibratedError):
        qm.to_integer()


def test_values_on_no_uniform_grid_are_not_frozen():
    qm = ready(profile="academic", algorithm="apot", weight_bits=4, act_bits=4)
    with pytest.raises(ExportError, match="no uniform grid"):
        qm.freeze()


def test_a_dead_channels_bias_fits_in_int32_and_the_channel_is_named(caplog):
    model = residual()
    with torch.no_grad():
        model.blocks[0].conv1.weight[3] = 0
        model.blocks[0].bn1.bias[3] = 5.0
    qm = ready(model)
    with caplog.at_level(logging.WARNING):
        frozen = qm.freeze()
    assert "blocks.0.conv1" in caplog.text
    assert "[3]" in caplog.text
    layer = frozen.layers["blocks.0.conv1"]
    assert not layer.weight[3].any()
    folded = float(qm.layers["blocks.0.conv1"].bias[3].detach())
    step = float(frozen.grids["Q:stem.2"].scale) * float(layer.grid.scale[3])
    assert int(layer.bias[3]) * step == pytest.approx(folded, rel=1e-6)
    assert abs(int(layer.bias[3])) <= 2**30
    assert torch.isfinite(run(qm)).all()


class Late(nn.Module):
    """A plug-in's quantiser: by the protocol alone."""

    def __init__(self, spec, role):
        super().__init__()
        self.qmin, self.qmax = spec.grid(signed=True)
        self.role, self.enabled, self.axis = role, False, 0
        self.register_buffer("scale", torch.ones(1) if role == "weight" else torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(self.scale.shape, dtype=torch.int32))

    def forward(self, x):
        if not self.enabled:
            return x
        scale = self.scale.view(-1, *[1] * (x.dim() - 1)) if self.role == "weight" else self.scale
        return torch.clamp(torch.round(x / scale), self.qmin, self.qmax) * scale


class Plug:
    name, kind, api_version = "plug", "ptq", 1

    def make_quantizer(self, spec, role):
        return Late(spec, role)


def test_quantisers_of_other_packages_work_by_the_protocol_alone(tmp_path):
    def made():
        return prepare(residual(), profile="tensorrt", example_inputs=(X[:2],), algorithm=Plug())

    qm = made()
    assert {layer.strategy for layer in qm.layers.values()} == {0}  # nothing is trained
    with pytest.raises(NotCalibratedError):
        qm.freeze()
    for layer in qm.layers.values():
        quantizer = layer.weight_quantizer
        quantizer.scale = layer.weight.detach().abs().flatten(1).amax(1) / quantizer.qmax
        quantizer.zero_point = torch.zeros_like(quantizer.scale, dtype=torch.int32)
        quantizer.enabled = True
    for quantizer in qm.act_quantizers.values():
        quantizer.scale.fill_(0.05)
        quantizer.enabled = True
    frozen = qm.freeze()
    weight = qm.layers["fc"].weight_quantizer(qm.layers["fc"].weight).detach().numpy()
    np.testing.assert_allclose(frozen.layers["fc"].weight * frozen.layers["fc"].grid.scale[:, None], weight, rtol=1e-6)
    qm.save(tmp_path / "plug.safetensors")
    other = made()
    other.load(tmp_path / "plug.safetensors")
    assert torch.equal(run(other), run(qm))


def test_inputs_by_name_and_wrong_ones():
    model = OfTwo(lambda m, x, y: m.conv(x) + y, conv=conv())
    a, b = images(8, 4, 8, 8), images(8, 4, 8, 8, seed=3)
    qm = prepare(model, profile="onnxruntime", example_inputs=(a[:2], b[:2]), algorithm="minmax")
    qm.eval()
    with torch.no_grad():
        torch.testing.assert_close(qm(x=a, y=b), model(a, b))
        torch.testing.assert_close(qm(a, y=b), model(a, b))
    with pytest.raises(MQBenchError, match=r"the input x has shape \(8, 4, 8\), expected \(N, 4, 8, 8\)"):
        qm(a[..., 0], b)
    with pytest.raises(MQBenchError, match="captured with 2 input tensors, got 1"):
        qm(a)
    with pytest.raises(MQBenchError, match="no argument 'z'"):
        qm(a, z=b)


def test_structures_of_outputs_come_back():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x):
            y = self.a(x)
            return {"boxes": (self.b(y), x), "features": y}

    x = images(8, 4, 8, 8)
    model = Heads()
    qm = ready(model, x=images(32, 4, 8, 8))
    found, expected = run(qm, x), run(model, x)
    assert torch.equal(found["boxes"][1], x)
    assert float((found["boxes"][0] - expected["boxes"][0]).abs().max()) < 0.1
    assert float((found["features"] - expected["features"]).abs().max()) < 0.1


def test_shared_grids_are_one_quantiser():
    model = Function(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(), b=conv(), c=conv(8, 4))
    x = images(32, 4, 8, 8)
    qm = ready(model, profile="xnnpack", x=x)
    assert qm.act_quantizers["Q:a"] is qm.act_quantizers["Q:b"]
    frozen = qm.freeze()
    assert frozen.grids["Q:a"].scale == frozen.grids["Q:b"].scale
    assert frozen.layers["c"].bias.dtype == np.int32  # its input's grid is known
    high = torch.cat([run(model.a, qm.act_quantizers["Q:x"](x)), run(model.b, qm.act_quantizers["Q:x"](x))]).max()
    grid = frozen.grids["Q:a"]
    assert float((grid.qmax - int(grid.zero_point)) * grid.scale) == pytest.approx(float(high), rel=0.03)


def test_a_model_with_constants_and_float_parts_is_quantised_around_them():
    model = Function(
        lambda m, x: m.b(torch.sin(m.a(x) + m.shift)), a=conv(), b=conv(), shift=nn.Parameter(torch.ones(4, 1, 1))
    )
    x = images(32, 4, 8, 8)
    with pytest.raises(UnsupportedOpError, match="sin"):
        prepare(model, profile="onnxruntime", example_inputs=(x[:2],))
    qm = ready(model, x=x, fallback="float")
    assert float((run(qm, x) - run(model, x)).abs().max()) < 0.05
    assert any(value.shape == (4, 1, 1) for value in qm.parameters())
    assert [node.name for node in qm.graph if node.op == "call"] == ["sin"]
    (constant,) = (node.name for node in qm.graph if node.op == "constant")
    np.testing.assert_array_equal(qm.freeze().constants[constant], np.ones((4, 1, 1), np.float32))
    torch.testing.assert_close(run(qm.to_integer(), x), run(qm, x), atol=0.03, rtol=0)


def test_a_kernel_for_each_sample_is_refused_by_its_name_and_runs_in_float_if_that_is_asked_for():
    def own_kernels(m, x):
        inner = m.a(x)
        kernels = inner.mean((2, 3)).reshape(-1, 1, 1, 1)
        rows = nn.functional.conv2d(inner.reshape(1, -1, 8, 8), kernels, groups=4 * x.shape[0])
        return m.b(rows.reshape(-1, 4, 8, 8))

    model, x = Function(own_kernels, a=conv(), b=conv()), images(32, 4, 8, 8)
    with pytest.raises(UnsupportedOpError, match=r"^conv2d.default at conv2d has no place in onnxruntime "):
        prepare(model, profile="onnxruntime", example_inputs=(x[:2],))  # not the size of the batch, which it reads
    qm = ready(model, x=x, fallback="float")
    assert float((run(qm, x) - run(model, x)).abs().max()) < 0.05
    torch.testing.assert_close(run(qm.to_integer(), x), run(qm, x), atol=0.03, rtol=0)
    with pytest.raises(UnsupportedOpError, match=r"^conv2d.default at conv2d has no place in ONNX files "):
        to_onnx(qm.freeze())


def test_leaves_run_in_float_and_move_with_the_model():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))

        def forward(self, x):
            return x * self.scale if x.mean() > -100 else x

    model = Function(lambda m, x: m.b(m.gate(m.a(x))), a=conv(), gate=Gate(), b=conv())
    x = images(32, 4, 8, 8)
    qm = ready(model, x=x, leaves=["gate"])
    assert isinstance(qm.net.gate, Gate)
    assert float((run(qm, x) - run(model, x)).abs().max()) < 0.05
    with torch.no_grad():
        qm.net.gate.scale.zero_()
    torch.testing.assert_close(run(qm, x), qm.net.b.bias.view(1, 4, 1, 1).expand(32, 4, 8, 8), atol=0.01, rtol=0)


def test_activations_are_released_when_they_were_read(monkeypatch):
    import weakref

    alive, peak = weakref.WeakSet(), [0]

    def watch(_, __, result):
        alive.add(result)
        peak[0] = max(peak[0], len(alive))

    qm = ready()
    for layer in {id(layer): layer for layer in qm.layers.values()}.values():
        layer.register_forward_hook(watch)
    run(qm)
    assert peak[0] <= 3  # a block's two branches, not all nine convolutions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_bits": 1}, "bits is 1"),
        ({"act_bits": 9}, "bits is 9"),
        ({"edge_bits": 16}, "bits is 16"),
        ({"bn_fold": 7}, "bn_fold is 7"),
        ({"profile": "nothing"}, "there is no profile"),
        ({"algorithm": "nothing"}, "there is no algorithm"),
        ({"algorithm": "minmax", "init": "mean"}, "no option 'init'"),
        ({"algorithm": Plug(), "init": "mean"}, "option of an algorithm by name"),
        ({"overrides": {"fz": {"weight_bits": 4}}}, "did you mean"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(options, words):
    with pytest.raises(MQBenchError, match=words) as raised:
        prepare(residual(), **{"profile": "onnxruntime", "example_inputs": (X[:2],), **options})
    assert "\n" not in str(raised.value)


def test_options_reach_the_algorithm_and_the_mode_is_the_models():
    model = residual().train()
    qm = prepare(model, profile="tvm", example_inputs=(X[:2],), algorithm="lsq", init="mean")
    assert qm.training
    assert qm.layers["fc"].weight_quantizer.default_observer == "mean"
    assert qm.act_quantizers["Q:x"].spec.pot_scale
    assert not prepare(model.eval(), profile="tvm", example_inputs=(X[:2],)).training
    assert "minmax" in algorithms.names()


def test_statistics_can_be_frozen_for_the_end_of_training():
    qm = ready(algorithm="lsq", bn_fold=4).train()
    qm.freeze_statistics()
    before = qm.layers["stem.0"].folded_norm.running_mean.clone()
    trained = qm(X).detach()
    assert torch.equal(qm.layers["stem.0"].folded_norm.running_mean, before)
    torch.testing.assert_close(trained, run(qm.eval()), rtol=1e-4, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet"])
@pytest.mark.parametrize("profile", ["onnxruntime", "tensorrt", "xnnpack"])
def test_torchvisions_nets_are_quantised(name, profile):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = awake(models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {})))
    x = images(8, 3, 64, 64)
    qm = prepare(model, profile=profile, example_inputs=(x[:2],), algorithm="minmax")
    calibrate(qm, [x])
    scale = run(model, x).std()
    assert float((run(qm, x) - run(model, x)).abs().mean() / scale) < 0.3
    assert float((run(qm.to_integer(), x) - run(qm, x)).abs().mean() / scale) < 0.1


@pytest.mark.slow
def test_a_transformer_encoder_is_quantised():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = images(32, 5, 16)
    qm = ready(model, x=x)
    assert float((run(qm, x) - run(model, x)).abs().mean()) < 0.05
    assert len(qm.bits) == 8
    assert float((run(qm.to_integer(), x) - run(qm, x)).abs().mean()) < 0.02
