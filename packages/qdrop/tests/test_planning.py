"""A plan says which tensors and weights get how many bits, and leaves the model alone."""

import copy

import pytest
import torch
import torchvision
from example_networks import IMAGES, Lambda, ResidualNet, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from qdrop import LayerOverride, QDropConfig, plan
from qdrop.errors import PlanError


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = rand(2, 3, 8, 8)


def conv(channels_in=3, channels=3):
    return nn.Conv2d(channels_in, channels, 1)


def sites(planned):
    return {tensor.site.name: tensor.bits for tensor in planned.tensors}


def weights(planned):
    return {weight.path: weight.bits for weight in planned.weights}


def roles(planned):
    return {weight.path: weight.role for weight in planned.weights}


RESNET18_BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def test_resnet18_is_quantised_exactly_as_the_paper_does():
    planned = plan(torchvision.models.resnet18(), rand(1, 3, 64, 64), QDropConfig(w_bits=2, a_bits=3))
    assert [(unit.name, unit.kind) for unit in planned.units] == [
        ("conv1", "layer"),
        *((name, "block") for name in RESNET18_BLOCKS),
        ("fc", "layer"),
    ]
    projected = {"layer2.0", "layer3.0", "layer4.0"}
    assert [unit.layers for unit in planned.units] == [
        ("conv1",),
        *(
            (f"{name}.conv1", f"{name}.conv2", *((f"{name}.downsample.0",) if name in projected else ()))
            for name in RESNET18_BLOCKS
        ),
        ("fc",),
    ]
    bits = weights(planned)
    assert {path: bits.pop(path) for path in ("conv1", "fc")} == {"conv1": 8, "fc": 8}
    assert set(bits.values()) == {2}
    blocks = [site for name in RESNET18_BLOCKS for site in (f"{name}.relu", f"{name}.relu#1")]
    assert list(sites(planned)) == ["relu", *blocks]
    assert list(sites(planned).values()) == [3] * 16 + [8]  # what enters the pooling before the classifier
    assert [unit.frontier for unit in planned.units] == [(), *((index,) for index in range(9))]
    assert {unit.channel_axis for unit in planned.units} == {1}
    tensors = {tensor.site.name: tensor for tensor in planned.tensors}
    assert tensors["layer1.1.relu#1"].consumers == ("layer2.0.conv1", "layer2.0.downsample.0")
    assert tensors["layer4.1.relu#1"].consumers == ("fc",)


def test_the_cache_of_resnet18_for_1024_images_stays_within_4_gigabytes():
    planned = plan(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    stem = planned.units[0]
    assert (stem.input_bytes, stem.output_bytes) == (3 * 224 * 224 * 4, 64 * 112 * 112 * 4)
    assert planned.cache_bytes == 1024 * (stem.input_bytes + stem.output_bytes) == 3_904_897_024
    assert stem.macs == 64 * 112 * 112 * 3 * 7 * 7
    assert sum(unit.macs for unit in planned.units) == 1_814_073_344  # 1.81 GMAC: torchvision's own figure


@pytest.mark.parametrize("act", [nn.SiLU, nn.GELU, nn.Hardswish, nn.ReLU])
def test_the_quantiser_sits_behind_the_activation_whichever_it_is(act):
    planned = plan(nn.Sequential(conv(), nn.BatchNorm2d(3), act(), conv()), X)
    assert list(sites(planned)) == ["2"]


ACTIVATIONS = [functional.relu, torch.relu, torch.relu_, functional.silu, torch.sigmoid, lambda x: x * torch.sigmoid(x)]


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_quantiser_sits_behind_a_functional_activation(act):
    planned = plan(Lambda(lambda self, x: self.b(act(self.a(x))), a=conv(), b=conv()), X)
    assert len(planned.tensors) == 1
    assert planned.tensors[0].site.function not in (None, "conv2d")
    assert planned.tensors[0].site.path == ""


def test_one_activation_module_used_twice_has_two_sites():
    model = Lambda(
        lambda self, x: self.c(self.relu(self.b(self.relu(self.a(x))))), a=conv(), b=conv(), c=conv(), relu=nn.ReLU()
    )
    assert list(sites(plan(model, X))) == ["relu", "relu#1"]


def test_tensors_that_feed_an_addition_or_leave_the_network_are_not_quantised():
    model = Lambda(
        lambda self, x: self.d(torch.relu(self.b(y := torch.relu(self.a(x))) + self.c(y))),
        a=conv(), b=conv(), c=conv(), d=conv(),
    )  # fmt: skip
    planned = plan(model, X)
    assert list(sites(planned)) == [":relu", ":relu#1"]
    assert planned.tensors[0].consumers == ("b", "c")


def test_a_tensor_is_quantised_once_behind_whatever_only_rearranges_or_pools_it():
    def forward(self, x):
        y = torch.relu(self.a(x))
        pooled = functional.avg_pool2d(functional.pad(y, (1, 1, 1, 1)), 2)
        first, _ = functional.dropout(y, 0.5, False).permute(0, 2, 3, 1).chunk(2, 1)
        return self.b(pooled).mean() + self.c(first.flatten(1, 2)[:, ::2]) + self.d(y.mean((2, 3))).sum()

    model = Lambda(forward, a=conv(), b=conv(), c=nn.Linear(3, 2), d=nn.Linear(3, 2))
    planned = plan(model, X)
    assert [(t.site.name, t.consumers) for t in planned.tensors] == [(":relu", ("b", "c", "d"))]


def test_a_mean_over_channels_is_a_tensor_of_its_own():
    model = Lambda(lambda self, x: self.b(torch.relu(self.a(x)).mean(1, keepdim=True)), a=conv(), b=conv(1, 2))
    assert list(sites(plan(model, X))) == [":mean"]


def test_the_input_is_not_quantised_not_even_normalised_or_padded_inside_the_model():
    model = Lambda(lambda self, x: self.a(functional.pad((x - 0.4) / 0.2, (1, 1))), a=conv())
    assert plan(model, X).tensors == ()


def test_a_tensor_that_is_read_before_its_module_ends_is_quantised_where_it_is_made():
    inner = Lambda(lambda self, x: ((y := torch.relu(x)), self.b(y)), b=conv())
    model = Lambda(lambda self, x: self.d((z := self.inner(self.a(x)))[0]) + z[1], a=conv(), inner=inner, d=conv())
    assert [(t.site.name, t.consumers) for t in plan(model, X).tensors] == [("inner:relu", ("inner.b", "d"))]


def test_a_tensor_that_nothing_seen_has_made_is_quantised_where_its_layer_reads_it():
    model = Lambda(lambda self, x: self.b(torch.from_numpy(self.a(x).numpy() * 2)), a=conv(), b=conv())
    assert list(sites(plan(model, X))) == ["b:conv2d<0"]


def test_both_operands_of_attention_are_quantised_but_no_mask():
    def forward(self, x, mask):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = torch.softmax(q @ k.transpose(1, 2) + mask, -1)
        fused = functional.scaled_dot_product_attention(q, k, v, mask)
        return self.out(scores @ v) + fused

    planned = plan(Lambda(forward, qkv=nn.Linear(4, 12), out=nn.Linear(4, 4)), (rand(2, 5, 4), rand(5, 5, seed=1)))
    assert list(sites(planned)) == [
        ":matmul<0",
        ":matmul<1",
        ":scaled_dot_product_attention<0",
        ":scaled_dot_product_attention<1",
        ":scaled_dot_product_attention<2",
        ":scaled_dot_product_attention<3",
        ":matmul#1<0",
        ":matmul#1<1",
        ":matmul#1",
    ]
    shapes = {tensor.site.name: tensor.shape for tensor in planned.tensors}
    assert shapes[":scaled_dot_product_attention<3"] == (2, 5, 5)


def test_probabilities_are_on_an_unsigned_grid_even_when_activations_are_symmetric():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    planned = plan(layer, rand(2, 3, 8), QDropConfig(a_symmetric=True))
    unsigned = {tensor.site.name for tensor in planned.tensors if not tensor.symmetric}
    assert unsigned == {"self_attn:scaled_dot_product_attention<3"}


def test_attention_of_torch_is_planned_with_its_projections():
    planned = plan(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), rand(2, 3, 8))
    assert [unit.name for unit in planned.units] == ["layers.0", "layers.1"]
    assert planned.units[0].layers[:2] == ("layers.0.self_attn.in_proj", "layers.0.self_attn.out_proj")
    assert [unit.channel_axis for unit in planned.units] == [2, 2]


def test_every_output_has_a_last_layer_and_branches_from_the_input_a_first():
    def forward(self, x):
        y = torch.relu(self.stem(x) + self.stem2(x))
        z = torch.relu(self.middle(y))
        return self.head(z), self.aux(y)

    names = ("stem", "stem2", "middle", "head", "aux")
    model = Lambda(forward, **{name: conv() for name in names})
    planned = plan(model, X)
    assert roles(planned) == dict(zip(names, ("first", "first", "middle", "last", "last"), strict=True))
    assert weights(planned) == dict(zip(names, (8, 8, 4, 8, 8), strict=True))
    assert sites(planned) == {":relu": 8, ":relu#1": 8}


def test_without_first_and_last_bits_all_are_equal_and_a_stem_may_have_its_own():
    planned = plan(ResidualNet(), IMAGES, QDropConfig(w_bits=3, a_bits=2, first_last_bits=None, stem_output_bits=8))
    assert set(weights(planned).values()) == {3}
    assert sites(planned) == {"relu": 8} | {f"relu#{call}": 2 for call in range(1, 7)}


def test_overrides_decide_by_name_glob_and_the_module_around():
    overrides = {
        "blocks.0": LayerOverride(w_bits=5, a_bits=6, reg_weight=0.5),
        "blocks.*.conv2": LayerOverride(w_bits=7),
        "fc": LayerOverride(w_bits=6),
    }
    planned = plan(ResidualNet(True), IMAGES, QDropConfig(overrides=overrides))
    bits = weights(planned)
    assert [bits[f"blocks.{i}.conv{k}"] for i in (0, 1) for k in (1, 2)] == [5, 7, 4, 7]
    assert bits["fc"] == 6
    assert [sites(planned)[name] for name in ("blocks.0:relu", "blocks.0", "blocks.1")] == [6, 6, 4]
    assert [unit.reg_weight for unit in planned.units] == [0.01, 0.5, 0.01, 0.01, 0.01]


def test_what_is_skipped_stays_in_floating_point_with_the_tensors_that_only_it_reads():
    planned = plan(ResidualNet(), IMAGES, QDropConfig(overrides={"blocks.1": LayerOverride(skip=True)}))
    assert [unit.name for unit in planned.units] == ["conv", "blocks.0", "blocks.2", "fc"]
    assert not any(path.startswith("blocks.1") for path in weights(planned))
    assert list(sites(planned)) == ["relu", "relu#1", "relu#4", "relu#5", "relu#6"]
    assert planned.units[2].frontier == (1,)
    assert "blocks.1.conv1: skipped by an override, stays in floating point" in planned.notes
    with pytest.raises(PlanError, match="skip every layer"):
        plan(ResidualNet(), IMAGES, QDropConfig(overrides={"*": LayerOverride(skip=True)}))


def test_skipping_the_last_layer_does_not_make_the_one_before_it_the_last():
    planned = plan(ResidualNet(), IMAGES, QDropConfig(overrides={"fc": LayerOverride(skip=True)}))
    assert "last" not in roles(planned).values()


def test_embeddings_have_eight_bits_and_no_unit_and_tied_weights_have_one_grid():
    model = Lambda(
        lambda self, ids: self.out(torch.relu(self.mid(self.embed(ids)))),
        embed=nn.Embedding(9, 4), mid=nn.Linear(4, 4), out=nn.Linear(4, 9, bias=False),
    )  # fmt: skip
    model.out.weight = model.embed.weight
    planned = plan(model, torch.tensor([[1, 2, 3]]), QDropConfig(first_last_bits=None))
    assert weights(planned) == {"embed": 8, "mid": 4, "out": 8}
    assert roles(planned)["embed"] == "embedding"
    assert {weight.path: weight.unit for weight in planned.weights} == {"embed": None, "mid": "mid", "out": None}
    assert "out: shares its weight with embed, rounded to nearest" in planned.notes
    assert sites(planned) == {"embed": 4, ":relu": 4}


def test_transposed_layers_have_their_output_channels_on_the_second_axis():
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.ReLU(), nn.Flatten(2), Conv1D(7, 81))
    planned = plan(model, X)
    assert [(w.kind, w.axis, w.shape) for w in planned.weights] == [
        ("ConvTranspose2d", 1, (3, 5, 2, 2)),
        ("Conv1D", 1, (81, 7)),
    ]
    assert planned.units[0].macs == 3 * 8 * 8 * 5 * 2 * 2
    assert planned.units[1].macs == 5 * 81 * 7


class Bare(nn.Module):
    """Multiplies by a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(3))

    def forward(self, x):
        return functional.linear(x, self.matrix)


def test_weights_that_cannot_be_quantised_are_named():
    model = Lambda(
        lambda self, x: self.lstm(self.bare(self.a(x)))[0],
        a=nn.Linear(3, 3), bare=Bare(), lstm=nn.LSTM(3, 2), unused=nn.Linear(2, 2),
    )  # fmt: skip
    planned = plan(model, rand(4, 2, 3))
    assert [weight.path for weight in planned.weights] == ["a"]
    assert "bare.matrix stays in floating point: `linear` uses it without a layer" in planned.notes
    assert "lstm (LSTM) stays in floating point: its weights cannot be quantised" in planned.notes
    assert "unused: not called on the example inputs, stay in floating point" in planned.notes


class Standardised(nn.Conv2d):
    """Its weight is normalised in every pass, and its input is padded as no plain layer does."""

    def forward(self, x):
        return functional.conv2d(functional.pad(x, (0, 1)), self.weight / self.weight.std(), self.bias)


def test_a_layer_that_computes_its_weight_as_it_runs_is_named_and_left():
    planned = plan(nn.Sequential(conv(), nn.ReLU(), Standardised(3, 3, 1), nn.ReLU(), conv()), X)
    assert [weight.path for weight in planned.weights] == ["0", "4"]
    assert "2 (Standardised) stays in floating point: it computes its weight as it runs" in planned.notes


def test_a_weight_that_another_module_multiplies_by_is_planned_all_the_same():
    inner = Lambda(lambda self, x: functional.linear(torch.relu(functional.linear(x, self.p.weight)), self.q.weight))
    inner.p, inner.q = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    class Block(nn.Sequential):
        pass

    model = nn.Sequential(nn.Linear(4, 4), inner)
    planned = plan(model, rand(2, 4), units=["1"])
    assert planned.units[1].layers == ("1.p", "1.q")
    alone = plan(model, rand(2, 4))
    assert [weight.unit for weight in alone.weights] == ["0", None, None]
    assert "1.p: multiplied by another module and in no block, rounded to nearest" in alone.notes


def test_channels_are_followed_through_permutations():
    class NextBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.dw, self.norm, self.fc = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.LayerNorm(3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.fc(self.norm(self.dw(x).permute(0, 2, 3, 1)))
            return (y + 0).permute(0, 3, 1, 2) + x if x.shape[2] == 3 else y

    square, tall = rand(2, 3, 3, 3), rand(2, 3, 4, 3)
    assert plan(nn.Sequential(NextBlock(), NextBlock()), square).units[0].channel_axis == 1
    assert plan(nn.Sequential(NextBlock()), tall).units[-1].channel_axis == 3


def test_a_model_without_layers_is_refused():
    with pytest.raises(PlanError, match="runs no convolution and no linear layer"):
        plan(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), X)


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        torch.get_rng_state(),
    )


def assert_same(before, after):
    assert before[1:3] == after[1:3]
    assert torch.equal(before[3], after[3])
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())


@pytest.mark.parametrize("fault", [None, "input", "unit"])
def test_planning_leaves_the_model_as_it_was_even_when_it_fails(fault):
    model = randomised(ResidualNet()).train()
    model.blocks[1].eval()
    model.fc.weight.requires_grad_(False)
    before = snapshot(model)
    if fault is None:
        plan(model, IMAGES)
    else:
        with pytest.raises(PlanError):
            plan(model, IMAGES[:, :, :1, 0] if fault == "input" else IMAGES, units=["nowhere"])
    assert_same(before, snapshot(model))


def test_planning_twice_gives_the_same_plan_and_half_precision_the_same_places():
    model = randomised(ResidualNet())
    first, second = plan(model, IMAGES), plan(model, IMAGES)
    half = plan(copy.deepcopy(model).bfloat16(), IMAGES.bfloat16())
    for planned in (second, half):
        assert planned.units == first.units
        assert planned.weights == first.weights
        assert planned.tensors == first.tensors


def test_rounding_to_nearest_takes_no_reconstruction_time():
    assert plan(ResidualNet(), IMAGES, QDropConfig(method="nearest")).seconds == 0
    short, long = (plan(ResidualNet(), IMAGES, QDropConfig(iters=iters)).seconds for iters in (100, 10_000))
    assert long == pytest.approx(100 * short)


def test_the_table_shows_every_unit_weight_and_activation_within_120_columns():
    planned = plan(torchvision.models.resnet18(), rand(1, 3, 64, 64))
    text = str(planned)
    assert max(map(len, text.splitlines())) <= 120
    assert all(unit.name in text for unit in planned.units)
    assert text.count(" 4b") == 19 + 16
    assert text.count(" 8b") == 2 + 1
    assert text.splitlines()[-1].startswith("10 units, 21 weights, 17 activations; cache ")
    assert "conv1 Conv2d 8b first" in text
    assert "fc Linear 8b last" in text


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["conv", "relu", "norm", "residual", "pool"]), min_size=1, max_size=8), st.booleans())
def test_in_any_chain_every_layer_is_in_one_unit_and_every_layer_but_the_first_reads_a_quantised_tensor(parts, blocks):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x):
            return x + torch.relu(self.conv(x))

    makers = {
        "conv": conv,
        "relu": nn.ReLU,
        "norm": lambda: nn.BatchNorm2d(3),
        "residual": Residual,
        "pool": lambda: nn.MaxPool2d(3, 1, 1),
    }
    model = nn.Sequential(conv(), *(makers[part]() for part in parts))
    planned = plan(model, X, QDropConfig(granularity="block" if blocks else "layer"))
    inside = [path for unit in planned.units for path in unit.layers]
    expected = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(inside) == sorted(expected)
    fed = {consumer for tensor in planned.tensors for consumer in tensor.consumers}
    assert fed == set(expected) - {"0"}
    names = [tensor.site.name for tensor in planned.tensors]
    assert len(names) == len(set(names))
    order = [unit.steps[0][0] for unit in planned.units]
    assert order == sorted(order, key=lambda path: int(path.split(".")[0]))


def test_a_missing_batch_dimension_is_named_at_the_first_convolution():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(PlanError, match=r"0 is given 3 axes: the batch dimension"):
        plan(net, IMAGES[0])


def test_symmetric_two_bit_weights_are_advised_against():
    net = randomised(ResidualNet())
    for config, advised in ((QDropConfig(w_bits=2, w_symmetric=True), True), (QDropConfig(w_bits=2), False)):
        notes = plan(net, IMAGES, config).notes
        assert any("symmetric 2-bit" in note for note in notes) == advised
