"""Folding changes where the arithmetic happens, not what comes out, and only in a copy."""

import copy
import re

import pytest
import timm
import torch
from example_networks import IMAGES, Lambda, ResidualNet, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from qdrop.attention import ExplicitAttention
from qdrop.errors import PlanError
from qdrop.folding import prepare
from qdrop.tracing import undisturbed


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def norms(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def outputs(model, *inputs, **keywords):
    with undisturbed(model):
        return model.eval()(*inputs, **keywords)


def largest_change(model, inputs):
    prepared, _ = prepare(model, inputs)
    expected = outputs(copy.deepcopy(model), inputs)
    return prepared, float((outputs(prepared, inputs) - expected).abs().max() / expected.abs().max())


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d, (2, 4, 9)),
    "conv2d": (
        lambda: nn.Conv2d(4, 6, 3, bias=False, padding_mode="circular", padding=1),
        nn.BatchNorm2d,
        (2, 4, 7, 7),
    ),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2), nn.BatchNorm3d, (2, 4, 3, 3, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d, (2, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d, (2, 4, 4, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d, (2, 4, 3, 3, 3)),
    "linear": (lambda: nn.Linear(4, 6), nn.BatchNorm1d, (5, 4)),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_batch_norm_vanishes_into_the_layer_before_it(kind, affine):
    layer, norm, shape = LAYERS[kind]
    model = randomised(nn.Sequential(layer(), norm(6, affine=affine), nn.ReLU())).double()
    prepared, change = largest_change(model.float(), torch.randn(shape, generator=generator()))
    assert change < 1e-5
    assert isinstance(prepared[1], nn.Identity)
    assert prepared[0].bias is not None


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31 - 1))
def test_folding_holds_for_any_number_of_groups_and_channels(groups, channels_in, channels, seed):
    width = groups * channels
    transposed = nn.ConvTranspose2d(groups * channels_in, width, 2, groups=groups)
    model = randomised(nn.Sequential(transposed, nn.BatchNorm2d(width), nn.Conv2d(width, width, 1, groups=groups)))
    x = torch.randn(2, groups * channels_in, 4, 4, generator=generator(seed))
    prepared, change = largest_change(model, x)
    assert norms(prepared) == []
    assert change < 1e-5


@pytest.mark.parametrize("functional_relu", [False, True])
def test_every_batch_norm_of_a_residual_net_is_folded(functional_relu):
    prepared, change = largest_change(randomised(ResidualNet(functional_relu)), IMAGES)
    assert norms(prepared) == []
    assert change < 1e-5


def test_folding_follows_the_tensors_and_not_the_order_of_registration():
    model = Lambda(
        lambda self, x: self.second(self.norm_b(self.first(self.norm_a(x)))),
        first=nn.Conv2d(3, 3, 1), norm_a=nn.BatchNorm2d(3), second=nn.Conv2d(3, 3, 1), norm_b=nn.BatchNorm2d(3),
    )  # fmt: skip
    prepared, change = largest_change(randomised(model), torch.randn(2, 3, 4, 4, generator=generator()))
    assert norms(prepared) == ["norm_a"]
    assert change < 1e-5


KEPT = {
    "read elsewhere": Lambda(
        lambda self, x: self.bn(y := self.conv(x)) + y, conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3)
    ),
    "joined with itself": Lambda(
        lambda self, x: torch.cat([self.bn(y := self.conv(x)), y]), conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3)
    ),
    "behind an activation": nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
    "layer called twice": Lambda(
        lambda self, x: self.bn(self.conv(x)) + self.conv(x + 1), conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3)
    ),
    "norm called twice": Lambda(
        lambda self, x: self.bn(self.conv(x)) + self.bn(self.conv2(x)),
        conv=nn.Conv2d(3, 3, 1), conv2=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3),
    ),
    "statistics of the batch": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_batch_norm_stays_where_folding_would_be_wrong(case):
    prepared, change = largest_change(randomised(KEPT[case]), torch.randn(2, 3, 4, 4, generator=generator()))
    assert len(norms(prepared)) == 1
    assert change < 1e-6


def test_a_linear_layer_on_sequences_keeps_the_batch_norm_over_its_second_axis():
    model = randomised(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)))
    x = torch.randn(2, 6, 4, generator=generator())  # the norm's channels are the sequence
    prepared, change = largest_change(model, x)
    assert norms(prepared) == ["1"]
    assert change < 1e-6


def test_the_activation_inside_timms_batch_norm_survives():
    model = randomised(timm.create_model("tf_efficientnet_lite0"))
    prepared, change = largest_change(model, torch.randn(1, 3, 32, 32, generator=generator()))
    assert norms(prepared) == []
    assert isinstance(prepared.bn1.act, nn.ReLU6)
    assert isinstance(prepared.blocks[1][0].bn3, nn.Identity)
    assert change < 1e-4


def test_frozen_batch_norm_of_torchvision_is_folded():
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), FrozenBatchNorm2d(4), nn.ReLU())
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(model[1], name).uniform_(0.5, 2, generator=generator())
    prepared, change = largest_change(model, torch.randn(2, 3, 5, 5, generator=generator()))
    assert isinstance(prepared[1], nn.Identity)
    assert change < 1e-5


def test_the_users_model_keeps_its_parameters_types_flags_mode_and_hooks():
    model = randomised(ResidualNet()).half().train()
    model.fc.weight.requires_grad_(False)
    model.blocks[0].eval()
    model.fc.register_forward_hook(lambda *_: None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    prepared, _ = prepare(model, IMAGES.half())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.conv.weight.dtype == torch.float16
    assert prepared.conv.weight.dtype == torch.float32
    assert not model.fc.weight.requires_grad
    assert len(model.fc._forward_hooks) == 1
    assert not any(module.training for module in prepared.modules())
    addresses = {value.data_ptr() for value in model.state_dict().values()}
    assert not addresses & {value.data_ptr() for value in prepared.state_dict().values()}


def test_tied_parameters_stay_tied_in_the_copy():
    model = Lambda(lambda self, x: self.out(self.embed(x)), embed=nn.Embedding(7, 4), out=nn.Linear(4, 7, bias=False))
    model.out.weight = model.embed.weight
    prepared, _ = prepare(model, torch.tensor([[1, 2]]))
    assert prepared.out.weight is prepared.embed.weight
    assert prepared.out.weight is not model.out.weight


def test_a_batch_norm_that_was_never_trained_is_named():
    _, notes = prepare(ResidualNet(), IMAGES)
    assert len(notes) == 1
    assert re.match("bn and 8 more: batch norm that has seen no data", notes[0])
    assert prepare(randomised(ResidualNet()), IMAGES)[1] == ()


def test_parametrised_weights_become_plain_ones():
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4))
    prepared, change = largest_change(randomised(model), torch.randn(2, 3, 4, 4, generator=generator()))
    assert isinstance(prepared[0]._parameters["weight"], nn.Parameter)
    assert norms(prepared) == []
    assert change < 1e-5


def test_layers_that_standardise_their_weight_become_plain_ones_with_batch_norm_folded():
    from timm.layers import StdConv2d, StdConv2dSame

    model = randomised(nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4), StdConv2dSame(4, 4, 3, stride=2)))
    prepared, change = largest_change(model, torch.randn(2, 3, 8, 8, generator=generator()))
    assert type(prepared[0]) is nn.Conv2d
    assert type(prepared[2]) is StdConv2dSame  # it pads as it runs, which a plain layer does not
    assert norms(prepared) == []
    assert change < 1e-5


class Forgetful(nn.Linear):
    """Its output depends on how often it was called."""

    def forward(self, x):
        self.times = getattr(self, "times", 0) + 1
        return super().forward(x) * self.times


REFUSED = {
    "parameter 0.weight is complex": lambda: nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)),
    r"0 is quantised already \(FakeQuantize\)": lambda: nn.Sequential(
        __import__("torch.ao.quantization").ao.quantization.FakeQuantize()
    ),
    "parameter weight has no shape yet": lambda: nn.LazyLinear(4),
    "does not run on the example inputs": lambda: nn.Linear(5, 5),
    "changed output 0": lambda: Forgetful(4, 4),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_prepared_is_refused_by_name(message):
    with pytest.raises(PlanError, match=message):
        prepare(REFUSED[message](), torch.randn(3, 4, generator=generator()))


def attention(**settings):
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, **settings).eval()


SETTINGS = [
    {"batch_first": True},
    {"bias": False},
    {"kdim": 5, "vdim": 6, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masks", ["none", "boolean", "float", "per head", "padding", "both"])
def test_explicit_attention_computes_what_torchs_computes(settings, need_weights, masks):
    original = attention(**settings)
    L, S, N = 3, 4, 2
    query = torch.randn(N, L, 8, generator=generator())
    key = torch.randn(N, S, original.kdim, generator=generator(1))
    value = torch.randn(N, S, original.vdim, generator=generator(2))
    if not original.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    keywords = {"need_weights": need_weights, "average_attn_weights": masks != "boolean"}
    causal = torch.ones(L, S, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * S, [False, False, True, True]])
    masked = {
        "boolean": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(L, S, generator=generator(3))},
        "per head": {"attn_mask": torch.randn(N * 2, L, S, generator=generator(4))},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
    }
    keywords |= masked.get(masks, {})
    expected, expected_weights = outputs(original, query, key, value, **keywords)
    explicit = ExplicitAttention(original, packed=False)
    found, weights = outputs(explicit, query, key, value, **keywords)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6)


def test_explicit_attention_takes_a_single_sequence():
    original = attention()
    x = torch.randn(3, 8, generator=generator())
    expected = outputs(original, x, x, x)
    found = outputs(ExplicitAttention(original, packed=True), x, x, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_packed_attention_also_serves_different_queries_and_keys():
    original = attention(batch_first=True)
    x, y = torch.randn(2, 3, 8, generator=generator()), torch.randn(2, 4, 8, generator=generator(1))
    found = outputs(ExplicitAttention(original, packed=True), x, y, y)
    torch.testing.assert_close(found, outputs(original, x, y, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_calls_its_explicit_layers_even_with_the_fused_path_on(norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    x = torch.randn(2, 5, 8, generator=generator())
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    prepared, _ = prepare(encoder, x)
    assert isinstance(prepared.layers[1].self_attn.in_proj, nn.Linear)
    called = []
    for name, module in prepared.named_modules():
        if isinstance(module, nn.Linear):
            weight = module.weight
            module.forward = lambda x, m=module, name=name, w=weight: (
                called.append(name) or nn.functional.linear(x, w, m.bias)
            )
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        found = prepared(x, src_key_padding_mask=padding)
    assert len(called) == 8
    expected = outputs(encoder, x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding], rtol=1e-5, atol=1e-5)


def test_attention_between_two_sequences_gets_a_layer_for_each():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    x, memory = torch.randn(2, 3, 8, generator=generator()), torch.randn(2, 4, 8, generator=generator(1))
    prepared, _ = prepare(layer, (x, memory))
    assert prepared.self_attn.packed
    assert not prepared.multihead_attn.packed
    assert isinstance(prepared.multihead_attn.k_proj, nn.Linear)
