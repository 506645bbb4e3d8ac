"""The exact forms agree with a loop over samples, and the choice between them."""

import pytest
import torch
from drawn_layers import layers, loop, made
from hypothesis import given

from dynsparse import aggregation
from dynsparse.aggregation import FORMS, bmm, choose, takes_bmm
from dynsparse.errors import ConfigError
from dynsparse.geometry import Geometry

POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)


def tensors(batch, kernels, filters, channels, size, positions=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, size, size, generator=generator)
    weight = torch.randn(kernels, filters, channels, positions, positions, generator=generator)
    return x, weight


@given(drawn=layers())
def test_all_forms_agree_with_the_loop_over_samples(drawn):
    layer, x = made(drawn)
    expected = loop(layer, x)
    weight = layer.effective_kernels()
    forms = [form for form in FORMS if form != "bmm" or takes_bmm(weight, layer.geometry)]
    with torch.no_grad():
        for form in forms:
            y = FORMS[form](x, weight, layer.bias, layer.attention(x), layer.geometry)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@given(drawn=layers(num_kernels=3))
def test_all_forms_have_the_same_gradients(drawn):
    layer, x = made(drawn)
    layer.double()
    x, found = x.double().requires_grad_(), []
    for form in ("grouped", "mix_outputs"):
        layer.form = form
        y = layer(x)
        found.append(torch.autograd.grad((y * y.detach().cos()).sum(), [x, *layer.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_the_product_form_takes_pointwise_kernels_with_a_stride_in_groups():
    x, weight = tensors(3, 2, 8, 4, 7)
    weight = weight[:, :, :2]
    geometry = Geometry((2, 3), (0, 0), (1, 1), 2)
    pi = torch.softmax(torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), 1)
    expected = aggregation.grouped(x, weight, None, pi, geometry)
    torch.testing.assert_close(bmm(x, weight, None, pi, geometry), expected)


@pytest.mark.parametrize(("positions", "padding"), [(3, 0), (1, 1)])
def test_the_product_form_refuses_what_it_cannot_compute(positions, padding):
    x, weight = tensors(2, 2, 4, 4, 5, positions)
    with pytest.raises(ConfigError, match="kernels of size 1 without padding"):
        bmm(x, weight, None, torch.ones(2, 2), POINTWISE._replace(padding=(padding, padding)))


def test_the_rule_takes_the_product_for_pointwise_kernels():
    x, weight = tensors(1, 4, 8, 8, 5)
    assert choose(x, weight, POINTWISE) == "bmm"


def test_the_rule_mixes_outputs_where_they_are_few_beside_large_kernels():
    padded = POINTWISE._replace(padding=(1, 1))
    x, weight = tensors(32, 2, 64, 64, 3, 3)  # 576 numbers an output channel; 16 * K * 9 = 288
    assert choose(x, weight, padded) == "mix_outputs"
    assert choose(x[:8], weight, padded) == "grouped"
    assert choose(*tensors(32, 2, 64, 64, 6, 3), padded) == "grouped"


def test_a_forced_form_is_taken_but_for_an_empty_batch():
    x, weight = tensors(2, 4, 8, 8, 5)
    assert [choose(x, weight, POINTWISE, form) for form in FORMS] == list(FORMS)
    assert choose(x[:0], weight, POINTWISE, "grouped") == "mix_outputs"


def test_measuring_happens_once_for_a_shape_and_takes_the_fastest(monkeypatch):
    x, weight = tensors(2, 3, 8, 8, 5)
    costs = {aggregation.grouped: 2.0, aggregation.mix_outputs: 1.0, aggregation.bmm: 3.0}
    timed = []

    def record(form, *_):
        timed.append(form)
        return costs[form]

    aggregation._fastest.cache_clear()
    monkeypatch.setattr(aggregation, "_timed", record)
    assert choose(x, weight, POINTWISE, "measured") == "mix_outputs"
    assert choose(x, weight, POINTWISE, "measured") == "mix_outputs"
    assert set(timed) == set(costs)
    assert len(timed) == 3 * len(costs)
    aggregation._fastest.cache_clear()


def test_measuring_runs_for_training_and_for_inference():
    x, weight = tensors(2, 3, 8, 8, 5)
    with torch.no_grad():
        assert choose(x, weight, POINTWISE, "measured") in FORMS
    assert choose(x, weight.requires_grad_(), POINTWISE, "measured") in FORMS
