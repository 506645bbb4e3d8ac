"""Units are the blocks that one would draw by hand."""

import pytest
import torch
from example_networks import IMAGES, BasicBlock, Lambda, ResidualNet
from torch import nn
from torch.nn import functional

from qdrop import QDropConfig, plan
from qdrop import units as units_module
from qdrop.errors import PlanError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NAMES = ["conv", "blocks.0", "blocks.1", "blocks.2", "fc"]


def named(planned):
    return [unit.name for unit in planned.units]


def kinds(planned):
    return [unit.kind for unit in planned.units]


@pytest.mark.parametrize("functional_relu", [False, True])
def test_a_residual_net_is_its_stem_its_blocks_and_its_classifier(functional_relu):
    planned = plan(ResidualNet(functional_relu), IMAGES)
    assert named(planned) == NAMES
    assert kinds(planned) == ["layer", "block", "block", "block", "layer"]
    assert [unit.frontier for unit in planned.units] == [(), (0,), (1,), (2,), (3,)]


def test_the_stem_runs_on_to_its_activation_whether_module_or_function():
    module, function = (plan(ResidualNet(kind), IMAGES).units[0] for kind in (False, True))
    assert module.steps == (("conv", 0), ("relu", 0))
    assert module.tail == ()
    assert module.tail_site is None
    assert function.steps == (("conv", 0),)
    assert [step(torch.tensor([-1.0, 2.0])).tolist() for step in function.tail] == [[0.0, 2.0]]
    assert function.tail_site == function.sites[-1]
    assert function.tail_site.name == ":relu"


def test_running_steps_and_tail_of_a_unit_gives_the_tensor_that_its_site_quantises():
    from qdrop.folding import prepare
    from qdrop.planning import plan_prepared

    prepared, _ = prepare(ResidualNet(True), IMAGES)
    unit = plan_prepared(prepared, IMAGES, QDropConfig()).units[0]
    with torch.no_grad():
        x = IMAGES
        for path, _ in unit.steps:
            x = prepared.get_submodule(path)(x)
        for function in unit.tail:
            x = function(x)
        assert torch.equal(x, functional.relu(prepared.conv(IMAGES)))


def test_layer_by_layer_every_layer_is_a_unit_up_to_its_own_activation():
    planned = plan(ResidualNet(), IMAGES, QDropConfig(granularity="layer"))
    assert set(kinds(planned)) == {"layer"}
    assert len(planned.units) == len(planned.weights) == 10
    by_name = {unit.name: unit for unit in planned.units}
    assert by_name["blocks.1.conv1"].steps == (("blocks.1.conv1", 0), ("relu", 3))
    assert by_name["blocks.1.conv2"].steps == (("blocks.1.conv2", 0),)  # an addition follows
    assert by_name["blocks.1.shortcut.0"].sites == ()


@pytest.mark.parametrize(("method", "blocks"), [("adaround", 0), ("brecq", 3)])
def test_adaround_goes_by_layers_and_brecq_by_blocks_whatever_is_asked(method, blocks):
    granularity = "block" if method == "adaround" else "layer"
    planned = plan(ResidualNet(), IMAGES, QDropConfig(method=method, granularity=granularity))
    assert kinds(planned).count("block") == blocks


class Residual(nn.Module):
    """A block of a name that no list knows."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return functional.relu(x + self.two(functional.relu(self.one(x))))


class Stage(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.parts = nn.ModuleList(Residual() for _ in range(depth))

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_repeated_modules_of_unknown_class_are_blocks_and_stages_of_them_are_not():
    planned = plan(nn.Sequential(Stage(2), Stage(2), Stage(1)), X)
    assert named(planned) == ["0.parts.0", "0.parts.1", "1.parts.0", "1.parts.1", "2.parts.0"]
    assert set(kinds(planned)) == {"block"}


def test_a_single_module_in_a_row_is_a_block_if_something_is_added_in_it():
    assert named(plan(nn.Sequential(nn.Conv2d(3, 3, 1), Residual(), nn.Conv2d(3, 2, 1)), X)) == ["0", "1", "2"]
    plain = Lambda(lambda self, x: self.b(self.a(x)), a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    assert named(plan(nn.Sequential(plain, nn.Conv2d(3, 2, 1)), X)) == ["0.a", "0.b", "1"]


def test_a_model_without_blocks_is_planned_by_layers_and_says_so():
    planned = plan(nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3))), X)
    assert named(planned) == ["0", "1", "2"]
    assert any("no block was recognised" in note for note in planned.notes)


def test_a_block_that_is_called_twice_is_no_unit_and_its_layers_are_rounded_to_nearest():
    block = Residual()
    planned = plan(Lambda(lambda self, x: self.head(self.b(self.b(x))), b=block, head=nn.Conv2d(3, 2, 1)), X)
    assert named(planned) == ["head"]
    assert [(weight.path, weight.unit) for weight in planned.weights] == [
        ("b.one", None),
        ("b.two", None),
        ("head", "head"),
    ]
    assert "b.one: used 2 times in a pass, rounded to nearest" in planned.notes


def test_no_layer_is_in_two_units():
    planned = plan(nn.Sequential(Stage(2), nn.Conv2d(3, 3, 1), Stage(1)), X)
    inside = [path for unit in planned.units for path in unit.layers]
    assert sorted(inside) == sorted({weight.path for weight in planned.weights})
    assert len(inside) == len(set(inside)) == 7


def test_the_user_joins_blocks_and_the_rules_decide_about_the_rest():
    model = nn.Sequential(Stage(2), Stage(2))
    assert named(plan(model, X, units=["0"])) == ["0", "1.parts.0", "1.parts.1"]
    assert named(plan(model, X, units=["1.parts.0.two"])) == ["0.parts.0", "0.parts.1", "1.parts.0.one", "1.parts.0.two", "1.parts.1"]  # fmt: skip


def two_calls(self, x):
    return self.b(self.b(x)) + self.a(x)


WRONG_UNITS = [
    (["blocks.9"], "there is no module 'blocks.9'", "did you mean 'blocks.2'?"),
    (["blocks.0", "blocks.0.conv1"], "conv1 lies within unit blocks", None),
    (["blocks.0.conv1", "blocks.0"], "conv1 lies within unit blocks", None),
    (["blocks.0", "blocks.0"], "is named twice", None),
    (["relu"], "relu: the module is called 7 times", None),
    (["blocks.0.shortcut"], "no layer in it", None),
    (["unused"], "unused: the module is not called on the example inputs", None),
]


@pytest.mark.parametrize(("names", "message", "hint"), WRONG_UNITS)
def test_units_that_cannot_be_are_refused_by_name(names, message, hint):
    model = ResidualNet()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(PlanError, match=message) as refused:
        plan(model, IMAGES, units=names)
    assert hint is None or refused.value.hint == hint


def test_a_block_that_is_too_large_is_split(monkeypatch):
    monkeypatch.setattr(units_module, "MAX_UNIT_PARAMS", 3 * 3 * 16 * 32)
    planned = plan(ResidualNet(), IMAGES)
    assert named(planned)[:2] == ["conv", "blocks.0"]
    assert "blocks.1.conv1" in named(planned)
    with pytest.raises(PlanError, match=r"unit blocks\.2: 57344 weights"):
        plan(ResidualNet(), IMAGES, units=["blocks.2"])


def test_an_extension_stops_before_a_join_a_split_and_another_unit():
    convs = {name: nn.Conv2d(3, 3, 1) for name in "abc"}
    split = Lambda(lambda self, x: self.b(functional.relu(y := self.a(x))) + self.c(torch.tanh(y)), **convs)
    steps = {unit.name: (unit.steps, len(unit.tail)) for unit in plan(split, X).units}
    assert steps == {name: (((name, 0),), 0) for name in "abc"}
    chain = Lambda(lambda self, x: self.b(torch.tanh(functional.relu(self.a(x)))), a=convs["a"], b=convs["b"])
    assert [len(unit.tail) for unit in plan(chain, X).units] == [2, 0]


def test_a_normalisation_before_a_lone_layer_belongs_to_its_unit():
    merge = Lambda(lambda self, x: self.reduce(self.norm(x[:, ::2])), norm=nn.LayerNorm(4), reduce=nn.Linear(4, 6))
    model = nn.Sequential(nn.Linear(4, 4), merge, nn.Linear(6, 2))
    planned = plan(model, torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)))
    assert planned.units[1].name == "1.reduce"
    assert planned.units[1].steps == (("1", 0),)
    assert [site.name for site in planned.units[1].sites] == ["1.norm", "1.reduce"]


def test_a_known_block_in_a_larger_model_keeps_its_side_branches_inside():
    model = nn.Sequential(BasicBlock(3, 4, 2, nn.ReLU()), nn.Flatten(), nn.Linear(64, 2))
    assert plan(model, X).units[0].layers == ("0.conv1", "0.conv2", "0.shortcut.0")
