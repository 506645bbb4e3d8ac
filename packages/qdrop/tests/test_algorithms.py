"""The methods, applied to a model and quantisers that a benchmark made."""

import copy
import importlib.metadata
from dataclasses import dataclass

import pytest
import torch
from nets import images
from torch import nn

from qdrop.algorithms import ADAROUND, BRECQ, QDROP
from qdrop.errors import CalibrationError, ConfigError, PlanError

CALIB = images(48, seed=1)


@dataclass(frozen=True)
class Spec:
    """The benchmark's words."""

    bits: int = 3
    symmetric: bool = False
    per_channel: bool = False
    signed: bool | str = False
    pot_scale: bool = False
    narrow_range: bool = False
    reduce_range: bool = False


class QConv(nn.Conv2d):
    """A convolution of the benchmark: its weight passes a quantiser."""

    def __init__(self, algorithm, spec, *args):
        super().__init__(*args)
        self.weight_quantizer = algorithm.make_quantizer(spec, "weight")

    def forward(self, x):
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class QBlock(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, algorithm, weight, act):
        super().__init__()
        self.conv1 = QConv(algorithm, weight, 4, 4, 3, 1, 1)
        self.act1 = algorithm.make_quantizer(act, "act")
        self.conv2 = QConv(algorithm, weight, 4, 4, 3, 1, 1)
        self.act2 = algorithm.make_quantizer(act, "act")

    def forward(self, x):
        y = self.act1(torch.relu(self.conv1(x)))
        return self.act2(torch.relu(self.conv2(y) + x))


def model(algorithm, weight=None, act=None):
    weight, act = weight or Spec(symmetric=True, per_channel=True, signed=True), act or Spec()
    torch.manual_seed(0)
    stem = nn.Sequential(QConv(algorithm, weight, 1, 4, 3, 2, 1), nn.ReLU(), algorithm.make_quantizer(act, "act"))
    blocks = [QBlock(algorithm, weight, act) for _ in range(2)]
    return nn.Sequential(stem, *blocks, nn.Flatten(), nn.Linear(256, 5))


def applied(algorithm=QDROP, weight=None, act=None, steps=30, **options):
    made = model(algorithm, weight, act)
    twin = copy.deepcopy(made)
    settings = {"batch_size": 16, **options}
    return twin.eval(), algorithm.apply(made, CALIB.split(16), seed=0, steps=steps, **settings)


def test_the_entry_points_name_the_three_methods():
    found = {entry.name: entry.load() for entry in importlib.metadata.entry_points(group="mqbench_lite.algorithms")}
    ours = {name: each for name, each in found.items() if type(each).__module__ == "qdrop.algorithms"}
    assert ours == {"qdrop": QDROP, "brecq": BRECQ, "qdrop-adaround": ADAROUND}
    assert {(name, each.name, each.kind, each.api_version) for name, each in ours.items()} == {
        (name, name, "ptq", 1) for name in ours
    }


@pytest.mark.parametrize("algorithm", [QDROP, BRECQ, ADAROUND], ids=lambda a: a.name)
def test_the_models_own_quantisers_are_enabled_and_frozen(algorithm):
    floating, quantised = applied(algorithm)
    ports = [m for m in quantised.modules() if hasattr(m, "qmax")]
    assert len(ports) == 5 + 5
    assert all(port.enabled and not port.scale.requires_grad for port in ports)
    conv = quantised[1].conv1
    assert isinstance(conv.weight, nn.Parameter)
    assert torch.equal(conv.weight_quantizer(conv.weight), conv.weight)  # on its grid already
    with torch.no_grad():
        expected, found = floating(CALIB), quantised(CALIB)
    assert 0 < (found - expected).square().mean() < 0.2 * expected.var()


def test_the_learned_rounding_is_better_than_the_nearest():
    schemes = {"weight": Spec(bits=2, per_channel=True), "act": Spec(bits=6)}
    floating, learned = applied(steps=200, **schemes)
    _, nearest = applied(steps=0, **schemes)
    with torch.no_grad():
        errors = [float((each(CALIB) - floating(CALIB)).square().mean()) for each in (learned, nearest)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        (Spec(), (0, 7)),
        (Spec(signed=True), (-4, 3)),
        (Spec(symmetric=True, signed=True), (-4, 3)),
        (Spec(symmetric=True, signed=True, narrow_range=True), (-3, 3)),
        (Spec(symmetric=True, signed="auto"), (0, 7)),
        (Spec(symmetric=True, signed=False), (0, 7)),
        (Spec(reduce_range=True), (0, 3)),
    ],
    ids=str,
)
def test_activations_keep_to_the_scheme(spec, grid):
    _, quantised = applied(act=spec, steps=2)
    port = quantised[0][2]
    assert (port.qmin, port.qmax) == grid
    x = torch.relu(torch.randn(1000))
    codes = torch.round(port(x) / port.scale) + port.zero_point
    assert grid[0] <= codes.min()
    assert codes.max() <= grid[1]
    if spec.symmetric:
        assert port.zero_point == 0
    else:
        assert (codes - port.zero_point).min() == 0  # behind a relu the range starts at zero


def test_a_weight_may_have_one_step_size_for_all_channels():
    _, quantised = applied(weight=Spec(symmetric=True, signed=True), steps=2)
    scale = quantised[1].conv1.weight_quantizer.scale
    assert len(scale.unique()) == 1


def test_schemes_that_cannot_be_kept_are_refused():
    with pytest.raises(ConfigError, match="powers of two"):
        QDROP.make_quantizer(Spec(pot_scale=True), "weight")
    with pytest.raises(ConfigError, match="per tensor"):
        QDROP.make_quantizer(Spec(per_channel=True), "act")
    with pytest.raises(PlanError, match="make_quantizer"):
        QDROP.apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [torch.randn(32, 4)], seed=0, steps=1)
    port = QDROP.make_quantizer(Spec(symmetric=True, signed=False), "act")
    with pytest.raises(CalibrationError, match="negative"):
        port.find_range([torch.randn(100)])


def test_an_exception_leaves_the_weights_as_they_were():
    made = model(QDROP)
    before = {name: value.clone() for name, value in made.named_parameters()}
    with pytest.raises(CalibrationError):
        QDROP.apply(made, [torch.full((16, 1, 16, 16), float("nan"))], seed=0, steps=1)
    assert {name: torch.equal(value, before[name]) for name, value in made.named_parameters()} == dict.fromkeys(
        before, True
    )
