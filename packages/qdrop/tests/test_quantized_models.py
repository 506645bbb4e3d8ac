"""Unmodified models of torchvision, timm, torch and transformers are quantised as they are."""

import math

import pytest
import torch
from example_networks import ResidualNet, randomised
from torch import nn

import qdrop
from qdrop import LayerOverride, QDropConfig, quantize
from qdrop.calibration import run
from qdrop.evaluation import sqnr_db

FEW = {"w_bits": 4, "a_bits": 4, "iters": 1, "batch_size": 4}
REAL = {"w_bits": 4, "a_bits": 4, "iters": 200, "batch_size": 8}


def images(count, size, channels=3):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def fashion(functional_relu):
    return randomised(ResidualNet(functional_relu)), list(images(16, 28, 1).split(8))


def torchvision(name):
    import torchvision.models

    torch.manual_seed(0)
    return randomised(torchvision.models.get_model(name, weights=None)), [images(16, 32)]


def timm(name, size=32, **options):
    from timm import create_model

    torch.manual_seed(0)
    return create_model(name, pretrained=False, **options), [images(16, size)]


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2), list(torch.randn(16, 10, 32).split(8))


def bert(task, size=32, layers=2, tokens=12):
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * size,
        max_position_embeddings=64,
    )
    batches = []
    for length in (tokens, tokens - 3):  # padded to the longest of its batch, as tokenisers do
        mask = torch.ones(8, length, dtype=torch.long)
        mask[:3, length // 2 :] = 0
        batches.append({"input_ids": torch.randint(0, 100, (8, length)), "attention_mask": mask})
    return getattr(transformers, f"BertFor{task}")(config), batches


def detector():
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    made = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, min_size=64, max_size=96)
    sizes = [(96, 120), (80, 96), (96, 96), (90, 110)]
    return randomised(made), [[torch.rand(3, *size) for size in sizes[i : i + 2]] for i in (0, 2)] * 2


pytestmark = pytest.mark.filterwarnings("ignore:only 8 calibration samples")  # of images for the detector


MODELS = {
    "fashion-mnist": lambda: fashion(False),
    "fashion-mnist-functional": lambda: fashion(True),
    "resnet18": lambda: torchvision("resnet18"),
    "mobilenet_v2": lambda: torchvision("mobilenet_v2"),
    "regnet_x_400mf": lambda: torchvision("regnet_x_400mf"),
    "vit": lambda: timm("vit_tiny_patch16_224", 32, img_size=32, depth=3),
    "convnext": lambda: timm("convnext_atto", depths=(1, 1, 2, 1)),
    "encoder": encoder,
    "bert-classification": lambda: bert("SequenceClassification"),
    "bert-questions": lambda: bert("QuestionAnswering"),
    "detector": detector,
}


def closeness(model, qm, batches):
    """SQNR of every output tensor of the first batch, dB."""
    model.eval()
    with torch.no_grad():
        pairs = zip(*(torch.utils._pytree.tree_leaves(run(each, batches[0])) for each in (model, qm)), strict=True)
        return [sqnr_db(a, b) for a, b in pairs if a.is_floating_point() and a.shape == b.shape and a.numel()]


LONG = {"convnext", "resnet18", "mobilenet_v2", "regnet_x_400mf", "bert-questions", "detector"}
"""Models that take many seconds to quantise; the others, and the plans of all, have units of the same kinds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in MODELS]
)
def test_a_model_is_quantised_unit_by_unit(name):
    model, batches = MODELS[name]()
    plan = qdrop.plan(model, batches[0], QDropConfig(**FEW))
    qm = quantize(model, batches, QDropConfig(**FEW), progress=False)
    assert [result.name for result in qm.report] == [unit.name for unit in plan.units]
    assert all(math.isfinite(result.loss_end) for result in qm.report)
    covered = {path for unit in plan.units for path in unit.layers}
    assert covered | {weight.path for weight in plan.weights if weight.unit is None} == qm.weights.keys()
    if name != "detector":  # its boxes are chosen by scores, so their number may differ
        assert all(math.isfinite(each) for each in closeness(model, qm, batches))


@pytest.mark.parametrize("name", ["fashion-mnist", "bert-classification", "vit"])
def test_eight_bits_are_close_to_floating_point(name):
    model, batches = MODELS[name]()
    qm = quantize(model, batches, QDropConfig(w_bits=8, a_bits=8, method="nearest"), progress=False)
    assert min(closeness(model, qm, batches)) > 25  # dB


def test_a_detector_finds_the_same_where_only_its_neck_is_quantised():
    model, batches = detector()
    rest = {"backbone.body*": LayerOverride(skip=True)}
    qm = quantize(model, batches, QDropConfig(w_bits=8, a_bits=8, method="nearest", overrides=rest), progress=False)
    model.eval()
    with torch.no_grad():
        expected, found = model(batches[0]), qm(batches[0])
    assert (
        [sorted(each) for each in found] == [sorted(each) for each in expected] == [["boxes", "labels", "scores"]] * 2
    )
    assert not any(weight.path.startswith(("rpn", "roi_heads")) for weight in qm.plan.weights)


def test_the_whole_model_may_be_called_again_with_other_shapes():
    model, batches = bert("SequenceClassification")
    qm = quantize(model, batches, QDropConfig(**FEW), progress=False)
    with torch.no_grad():
        for length in (5, 30):
            out = qm(
                input_ids=torch.randint(0, 100, (3, length)), attention_mask=torch.ones(3, length, dtype=torch.long)
            )
            assert out.logits.shape == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_reconstruction_brings_a_model_closer_than_rounding(name):
    model, batches = MODELS[name]()
    # At 4-bit activations the quantised LayerNorm outputs are nearly all of a random encoder's error, which no rounding
    # of weights can lower; at 2-bit weights there is something to learn.
    real = {**REAL, "w_bits": 2, "a_bits": 8, "iters": 500} if name.startswith("bert") else REAL
    error = {}
    for method in ("nearest", "qdrop"):
        qm = quantize(model, batches, QDropConfig(**{**real, "method": method}), progress=False)
        error[method] = -1.0 if name == "detector" else sum(closeness(model, qm, batches))
        losses = [(result.loss_start, result.loss_end) for result in qm.report]
    assert sum(end < start for start, end in losses) > 0.7 * len(losses)
    assert error["qdrop"] >= error["nearest"]


@pytest.mark.slow
def test_efficientnet_lite0_with_its_weights_gets_closer_on_photographs():
    from qdrop.data import photographs
    from qdrop.models import float_model

    model, x = float_model("lite0").model, photographs()
    error, classes = {}, {}
    for method in ("nearest", "qdrop"):
        config = QDropConfig(w_bits=4, a_bits=4, method=method, iters=100, batch_size=8)
        qm = quantize(model, x.split(7), config, progress=False)
        (error[method],) = closeness(model, qm, [x])
        with torch.no_grad():
            classes[method] = float((qm(x).argmax(1) == model(x).argmax(1)).float().mean())
    assert error["qdrop"] > error["nearest"] + 1  # dB
    assert classes["qdrop"] >= classes["nearest"]
