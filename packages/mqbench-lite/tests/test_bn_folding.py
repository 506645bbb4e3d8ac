"""Folding: one result in evaluation, and what each strategy does in training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Function, awake, conv, images
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- its name everywhere

from mqbench_lite.bn_folding import BatchNorm, fold, layer_of
from mqbench_lite.capture import capture
from mqbench_lite.errors import ProfileError
from mqbench_lite.graph import Node


class Rounds(nn.Module):
    """A weight's quantiser with a fixed step, straight through."""

    def __init__(self, scale=0.05):
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale))
        self.enabled, self.seen = True, []

    def forward(self, weight):
        self.seen.append(weight.detach().clone())
        return weight + (torch.round(weight / self.scale) * self.scale - weight).detach()


GEOMETRY = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 1)}


def parts(op="conv", groups=1, bias=True, affine=True, seed=0):
    """Node, weight, bias and normalisation of a layer of 4 to 6 channels."""
    torch.manual_seed(seed)
    if op == "linear":
        node, weight = Node("l", "linear"), torch.randn(6, 4)
    elif op == "conv":
        node, weight = Node("l", "conv", (), {**GEOMETRY, "groups": groups}), torch.randn(6, 4 // groups, 3, 3)
    else:
        attributes = {**GEOMETRY, "groups": groups, "output_padding": (1, 0)}
        node, weight = Node("l", "conv_transpose", (), attributes), torch.randn(4, 6 // groups, 3, 3)
    bn = BatchNorm(6, 1e-3, 0.1, affine=affine)
    awake(bn, seed)
    return node, nn.Parameter(weight), nn.Parameter(torch.randn(6)) if bias else None, bn


def layer(strategy, *, quantizer=True, **options):
    node, weight, bias, bn = parts(**options)
    made = layer_of(node, weight, bias, bn=bn, strategy=strategy, rounds_bias=False)
    if quantizer:
        del made.weight_quantizer
        made.weight_quantizer = Rounds()
    return made


def example(op):
    return images(5, 4) if op == "linear" else images(5, 4, 7, 6)


def unfolded(op, x, **options):
    """The layer and its normalisation as torch has them, in evaluation."""
    _, weight, bias, bn = parts(op, **options)
    if op == "linear":
        result = F.linear(x, weight, bias)
    else:
        function = F.conv2d if op == "conv" else F.conv_transpose2d
        more = {} if op == "conv" else {"output_padding": (1, 0)}
        result = function(x, weight, bias, (2, 1), (1, 1), groups=options.get("groups", 1), **more)
    return bn.eval()(result)


@pytest.mark.parametrize("op", ["conv", "conv_transpose", "linear"])
@pytest.mark.parametrize("strategy", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_in_evaluation_every_strategy_is_the_normalised_layer(op, strategy, groups):
    options = {} if op == "linear" else {"groups": groups}
    x = example(op)
    expected = unfolded(op, x, **options)
    made = layer(strategy, quantizer=False, op=op, **options).eval()
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), bias=st.booleans(), affine=st.booleans(), op=st.sampled_from(["conv", "linear"]))
def test_quantised_weights_are_the_same_under_all_strategies_in_evaluation(seed, bias, affine, op):
    x, results, weights = example(op), [], []
    for strategy in range(5):
        made = layer(strategy, op=op, bias=bias, affine=affine, seed=seed).eval()
        with torch.no_grad():
            results.append(made(x))
        weights.append(made.weight_quantizer.seen[-1])
    for result, weight in zip(results, weights, strict=True):
        torch.testing.assert_close(weight, weights[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)


def by_hand(made, x):
    """What the formulas of the module's docstring need, in torch's own words."""
    bn = made.folded_norm
    plain = F.conv2d(x, made.weight, made.bias, (2, 1), (1, 1))
    mean, var = plain.mean((0, 2, 3)), plain.var((0, 2, 3), unbiased=False)
    return bn.running_mean.clone(), (bn.running_var + bn.eps).sqrt(), mean, (var + bn.eps).sqrt()


def rounded(weight):
    return torch.round(weight / 0.05) * 0.05


def column(values):
    return values.view(-1, 1, 1, 1)


def plane(values):
    return values.view(1, -1, 1, 1)


@pytest.mark.parametrize("strategy", [1, 2, 3, 4])
def test_training_follows_the_formula(strategy):
    made, x = layer(strategy).train(), example("conv")
    gamma, beta, bias, w = made.folded_norm.weight, made.folded_norm.bias, made.bias, made.weight
    mu, sigma, mu_b, sigma_b = by_hand(made, x)

    def convolved(weight):
        return F.conv2d(x, rounded(weight), None, (2, 1), (1, 1))

    if strategy == 1:
        expected = convolved(w * column(gamma / sigma)) + plane(beta + (bias - mu) * gamma / sigma)
    elif strategy == 2:
        expected = convolved(w * column(gamma / sigma_b)) + plane(beta + (bias - mu_b) * gamma / sigma_b)
    elif strategy == 3:
        scaled = convolved(w * column(gamma / sigma)) * plane(sigma / sigma_b)
        expected = scaled + plane(beta + (bias - mu_b) * gamma / sigma_b)
    else:
        plain = convolved(w * column(gamma / sigma)) / plane(gamma / sigma) + plane(bias)
        mean, deviation = plain.mean((0, 2, 3)), (plain.var((0, 2, 3), unbiased=False) + made.folded_norm.eps).sqrt()
        expected = (plain - plane(mean)) / plane(deviation) * plane(gamma) + plane(beta)
    torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", [1, 2, 3, 4])
def test_running_statistics_follow_the_batch_unless_they_are_frozen(strategy):
    made, x = layer(strategy).train(), example("conv")
    before, (_, _, mu_b, _) = made.folded_norm.running_mean.clone(), by_hand(made, x)
    made(x)
    if strategy == 1:
        assert torch.equal(made.folded_norm.running_mean, before)
    elif strategy in (2, 3):  # of the layer in float
        torch.testing.assert_close(made.folded_norm.running_mean, 0.9 * before + 0.1 * mu_b)
    else:
        assert not torch.equal(made.folded_norm.running_mean, before)
    made.statistics_frozen, before = True, made.folded_norm.running_mean.clone()
    result = made(x)
    assert torch.equal(made.folded_norm.running_mean, before)
    torch.testing.assert_close(result, made.eval()(x))


@pytest.mark.parametrize("strategy", [0, 1, 2, 3, 4])
def test_gradients_are_those_of_finite_differences(strategy):
    made = layer(strategy, quantizer=False).double().train()
    x = example("conv").double()
    probe = torch.randn(5, 6, 4, 6, dtype=torch.float64)
    values = [made.weight, made.bias] + (
        [made.folded_norm.weight, made.folded_norm.bias] if made.folded_norm is not None else []
    )
    gradients = torch.autograd.grad((made(x) * probe).sum(), values, allow_unused=True)
    for value, gradient in zip(values, gradients, strict=True):
        if gradient is None:  # a bias before a normalisation by the batch's mean
            assert strategy in (2, 3, 4)
            continue
        direction, step = torch.randn_like(value), 1e-6
        results = []
        for sign in (1, -1):
            with torch.no_grad():
                value.add_(sign * step * direction)
                statistics = [buffer.clone() for buffer in made.buffers()]
                results.append(float((made(x) * probe).sum()))
                for buffer, old in zip(made.buffers(), statistics, strict=True):
                    buffer.copy_(old)
                value.sub_(sign * step * direction)
        expected = (results[0] - results[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_channel_whose_factor_is_zero_gives_its_summand_without_nan():
    made = layer(4).train()
    with torch.no_grad():
        made.folded_norm.weight[2] = 0
    result = made(example("conv"))
    result.sum().backward()
    torch.testing.assert_close(result[:, 2], made.folded_norm.bias[2].expand_as(result[:, 2]))
    assert all(bool(value.grad.isfinite().all()) for value in made.parameters())


def test_biases_are_rounded_to_products_of_the_two_step_sizes():
    node, weight, bias, _ = parts()
    made = layer_of(node, weight, bias, rounds_bias=True)
    del made.weight_quantizer
    scale = torch.linspace(0.01, 0.06, 6)
    made.weight_quantizer = Rounds(scale.view(-1, 1, 1, 1))
    made.weight_quantizer.scale = scale
    made.weight_quantizer.forward = lambda weight: weight
    x, step = example("conv"), torch.tensor(0.3)
    codes = torch.round(bias / (step * scale))
    expected = F.conv2d(x, weight, codes * step * scale, (2, 1), (1, 1))
    found = made(x, step)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), [made.bias])
    torch.testing.assert_close(gradient, torch.full((6,), float(found.numel() / 6)))
    torch.testing.assert_close(made(x), F.conv2d(x, weight, bias, (2, 1), (1, 1)))  # no input scale, no rounding


def captured_names(model, strategy, shape=(4, 8, 8)):
    captured = capture(awake(model), (images(2, *shape),))
    folding = fold(captured.graph, captured.sizes, strategy)
    return [node.name for node in folding.graph if node.op != "input"], dict(folding.norms)


def test_normalisations_leave_the_graph_and_readers_read_the_layer():
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
    assert captured_names(model, 4) == (["0", "2"], {"0": "1"})
    assert captured_names(model, -1) == (["0", "1", "2"], {})
    with pytest.raises(ProfileError, match="bn_fold is 5"):
        captured_names(model, 5)


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (Function(lambda m, x: m.bn(y := m.conv(x)) + y, conv=conv(), bn=nn.BatchNorm2d(4)), "bn"),
        (Function(lambda m, x: m.conv(m.bn(x)), conv=conv(), bn=nn.BatchNorm2d(4)), "bn"),
        (Function(lambda m, x: m.bn(m.conv(m.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4)), "bn"),
        (
            Function(lambda m, x: m.b(m.conv(m.a(m.conv(x)))), conv=conv(), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4)),
            "a",
        ),
        (Function(lambda m, x: m.bn(m.b(m.bn(m.a(x)))), a=conv(), b=conv(), bn=nn.BatchNorm2d(4)), "bn"),
    ],
    ids=["read twice", "before", "reused layer", "two normalisations", "reused normalisation"],
)
def test_what_cannot_be_folded_stays(model, kept):
    names, norms = captured_names(model, 4)
    assert kept in names
    assert norms == {}


def test_a_reused_pair_is_folded_as_one():
    model = Function(lambda m, x: m.bn(m.conv(m.bn(m.conv(x)))), conv=conv(), bn=nn.BatchNorm2d(4))
    assert captured_names(model, 4) == (["conv", "conv#2"], {"conv": "bn"})


def test_a_linear_layer_is_folded_only_where_the_normalisation_is_of_its_channels():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
    assert captured_names(model, 4, (4,))[1] == {"0": "1"}
    assert captured_names(model, 4, (6, 4))[1] == {}  # [n, 6, 4]: axis 1 is not the layer's
