"""The schedule's defaults: the paper's at its length, larger rates for shorter runs."""

import pytest

from qdrop import LayerOverride, QDropConfig


def test_the_papers_length_has_the_papers_rates():
    config = QDropConfig(iters=20_000)
    assert (config.rate_of_alpha, config.rate_of_scale) == (1e-3, 4e-5)


@pytest.mark.parametrize(("iters", "alpha", "scale"), [(5000, 1e-3, 1.6e-4), (2000, 2.5e-3, 4e-4), (400, 1e-2, 1e-3)])
def test_short_runs_move_as_far_up_to_a_cap(iters, alpha, scale):
    config = QDropConfig(iters=iters)
    assert config.rate_of_alpha == pytest.approx(alpha)
    assert config.rate_of_scale == pytest.approx(scale)


def test_given_rates_are_taken_as_they_are():
    config = QDropConfig(iters=10, lr_alpha=1e-3, lr_scale=4e-5)
    assert (config.rate_of_alpha, config.rate_of_scale) == (1e-3, 4e-5)


def test_lambda_is_the_papers_for_the_two_mobile_networks():
    found = [QDropConfig.for_arch(name).reg_weight for name in ("mobilenet_v2", "timm:mnasnet_100", "resnet18")]
    assert found == [0.1, 0.2, 0.01]
    assert QDropConfig.for_arch("mobilenetv2_100", reg_weight=0.5, w_bits=2) == QDropConfig(reg_weight=0.5, w_bits=2)


def test_a_later_override_decides_over_an_earlier_one():
    config = QDropConfig(
        overrides={"layer1.*": LayerOverride(w_bits=8), "layer1.0": LayerOverride(w_bits=3, skip=True)}
    )
    assert config.override("layer1.1") == LayerOverride(w_bits=8)
    assert config.override("layer1.0") == LayerOverride(w_bits=3, skip=True)
    assert config.override("fc") == LayerOverride()
