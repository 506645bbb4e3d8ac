"""Parameters, bytes and multiply-adds, against the spec's tables and torch's own shapes."""

import json

import pytest
import torch
from torch import nn

from dynsparse import (
    SDConv2d,
    SparsityError,
    convert,
    count,
    dynamic_layers,
    sd_mobilenet_v1,
    sd_mobilenet_v2,
    sd_resnet18,
)

NETWORKS = {
    "v1": (sd_mobilenet_v1, {"mask_depthwise": True}),
    "v2": (sd_mobilenet_v2, {"mask_depthwise": True}),
    "resnet18": (sd_resnet18, {}),
}
# Spec section 1: static, dy, then parameters at sparsity 0.5, 0.7, 0.8, 0.9 (millions), r = 4; MAdds shared, independent.
TABLE = {
    "v1": (4.232, 568.7, 15.19, 582.9, (8.82, 6.27, 5.00, 3.73), 70, 206),
    "v2": (3.505, 300.8, 12.40, 311.9, (8.02, 6.27, 5.40, 4.52), 44, 115),
    "resnet18": (11.690, 1814.1, 45.47, 1859.0, (23.16, 14.23, 9.77, 5.30), 293, 706),
}
IMAGE = (3, 224, 224)


@pytest.fixture(scope="module")
def made():
    """Networks without memory: on the meta device, of which only shapes are asked."""
    kept = {}

    def make(name, variant, reduction=4):
        key = name, variant, reduction
        if key not in kept:
            factory, settings = NETWORKS[name]
            more = {} if variant == "static" else {"reduction": reduction}
            more |= settings if variant != "static" else {}
            kept[key] = factory(variant, **more)
        return kept[key]

    return make


@pytest.mark.parametrize("name", TABLE)
def test_the_budget_table(made, name):
    static, static_madds, dy, dy_madds, sparse, shared, independent = TABLE[name]
    plain = count(made(name, "static"), IMAGE)
    assert round(plain.total / 1e6, 3) == static
    assert round(plain.madds_dense / 1e6, 1) == static_madds
    dynamic = count(made(name, "dy"), IMAGE)
    assert round(dynamic.total / 1e6, 2) == dy
    assert round(dynamic.madds_dense / 1e6, 1) == dy_madds
    for sparsity, expected in zip((0.5, 0.7, 0.8, 0.9), sparse, strict=True):
        counted = count(made(name, "sd"), IMAGE, sparsity=sparsity)
        assert round(counted.nonzero / 1e6, 2) == expected
    assert round(counted.madds_shared / 1e6) == shared
    assert round(counted.madds_union / 1e6) == independent


def test_the_budget_of_a_smaller_router(made):
    counted = [count(made("resnet18", "sd", 16), IMAGE, sparsity=s).nonzero for s in (0.5, 0.7, 0.8, 0.9)]
    assert [round(each / 1e6, 2) for each in counted] == [22.92, 14.00, 9.54, 5.07]
    dynamic = count(made("resnet18", "dy", 16), IMAGE)
    assert (round(dynamic.total / 1e6, 2), round(dynamic.madds_dense / 1e6, 1)) == (45.24, 1858.8)


@pytest.mark.parametrize(
    ("factory", "expected"), [(sd_mobilenet_v1, (3.887, 86, 218)), (sd_mobilenet_v2, (4.752, 63, 128))]
)
def test_depthwise_layers_without_masks(factory, expected):
    counted = count(factory("sd", reduction=4), IMAGE, sparsity=0.9)
    found = round(counted.nonzero / 1e6, 3), round(counted.madds_shared / 1e6), round(counted.madds_union / 1e6)
    assert found == expected


def test_bytes_of_the_spec():
    """|W| = 1000, K = 4, 400 nonzeros: 1600 + 500 bytes, or 1600 + 125 with one mask."""
    for sharing, bits in (("independent", 500), ("shared", 125)):
        torch.manual_seed(0)
        layer = SDConv2d(10, 100, 1, bias=False, mask_sharing=sharing)
        layer.finalize(0.9)
        assert int(layer.masks().sum()) == 400
        (row,) = [row for row in count(nn.Sequential(layer), (10, 5, 5)).per_layer if row.kind == "SDConv2d"]
        router = 4 * sum(each.numel() for each in layer.router.parameters()) + 4  # and its temperature
        assert row.stored_bitmap - router == 1600 + bits


def test_real_masks_are_counted_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(SDConv2d(8, 16, 3, padding=1), nn.ReLU(), SDConv2d(16, 8, 1, stride=2))
    for _, layer in dynamic_layers(model):
        layer.finalize(0.8)
    counted = count(model, (8, 10, 10))
    layers = [layer for _, layer in dynamic_layers(model)]
    masked = sum(int((~layer.masks()).sum()) for layer in layers)
    assert counted.nonzero == counted.total - masked
    conv = [int(layer.masks().any(0).sum()) * positions for layer, positions in zip(layers, (100, 25), strict=True)]
    aggregation = [int(layer.masks().sum()) for layer in layers]
    routers = [8 * 4 + 4 * 4, 16 * 4 + 4 * 4]
    assert counted.madds_union == sum(conv) + sum(aggregation) + sum(routers)


def test_counting_changes_nothing_and_runs_in_any_mode():
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)), skip=()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = count(model, (3, 9, 9))
    assert count(model, (3, 9, 9)) == first
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert json.loads(first.to_json())["total"] == first.total
    assert f"| all | {first.total} |" in first.to_markdown()
    with pytest.raises(SparsityError, match="did you mean"):
        count(model, (3, 9, 9), sparsity=90)
