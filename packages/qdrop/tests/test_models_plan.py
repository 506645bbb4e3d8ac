"""Plans of other people's models: units, sites and roles as one would choose them by hand."""

import pytest
import timm
import torch
import torchvision
from example_networks import randomised
from torch import nn
from transformers import BatchEncoding, BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from qdrop import plan

MODELS = torchvision.models


def images(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def blocks(planned):
    return [unit.name for unit in planned.units if unit.kind == "block"]


def layers(planned):
    return [unit.name for unit in planned.units if unit.kind == "layer"]


def of_role(planned, role):
    return [weight.path for weight in planned.weights if weight.role == role]


def names(planned):
    return [tensor.site.name for tensor in planned.tensors]


def high(planned):
    """Sites with more bits than the others."""
    return [tensor.site.name for tensor in planned.tensors if tensor.bits == 8]


def assert_complete(model, planned, unused=()):
    """Every layer that ran has a plan, each unit's layers are its own, and each tensor comes in the order it is made."""
    quantisable = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
    expected = {
        name
        for name, module in model.named_modules()
        if isinstance(module, quantisable) and not name.startswith(tuple(unused))
    }
    found = {weight.path.replace(".in_proj", "").replace("in_proj", "") for weight in planned.weights}
    attention = {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    assert found - attention == expected
    inside = [path for unit in planned.units for path in unit.layers]
    assert sorted(inside) == sorted(weight.path for weight in planned.weights if weight.unit is not None)
    in_units = [site.name for unit in planned.units for site in unit.sites]
    assert len(in_units) == len(set(in_units))
    assert set(in_units) == {tensor.site.name for tensor in planned.tensors if tensor.unit is not None}
    assert max(map(len, [line for line in str(planned).splitlines() if not line.startswith("note")])) <= 120


MOBILENET_BLOCKS = [f"features.{index}" for index in range(1, 18)]


def test_mobilenet_v2_has_17_inverted_residuals_with_a_site_after_each_addition_or_projection():
    model = randomised(MODELS.mobilenet_v2())
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert blocks(planned) == MOBILENET_BLOCKS
    assert layers(planned) == ["features.0.0", "features.18.0", "classifier.1"]
    sites = {unit.name: [site.name for site in unit.sites] for unit in planned.units}
    assert sites["features.1"] == ["features.1.conv.0.2", "features.1.conv.1"]  # no expansion
    assert sites["features.2"] == ["features.2.conv.0.2", "features.2.conv.1.2", "features.2.conv.2"]
    assert sites["features.3"] == ["features.3.conv.0.2", "features.3.conv.1.2", "features.3"]  # added to its input
    assert high(planned) == ["features.18.2"]
    assert (of_role(planned, "first"), of_role(planned, "last")) == (["features.0.0"], ["classifier.1"])


def test_regnet_x_has_22_blocks_each_with_three_sites():
    model = randomised(MODELS.regnet_x_400mf())
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert len(blocks(planned)) == 22
    assert layers(planned) == ["stem.0", "fc"]
    assert {len(unit.sites) for unit in planned.units if unit.kind == "block"} == {3}
    assert high(planned) == ["trunk_output.block4.block4-11.activation"]


def test_mnasnet_has_16_inverted_residuals_without_activation_after_the_addition():
    model = randomised(MODELS.mnasnet1_0())
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert len(blocks(planned)) == 16
    assert layers(planned) == ["layers.0", "layers.3", "layers.6", "layers.14", "classifier.1"]
    assert {"layers.8.1", "layers.8.0.layers.6"} <= set(names(planned))
    assert high(planned) == ["layers.16"]


def test_googlenet_has_9_inceptions_and_names_its_unused_classifiers():
    model = randomised(MODELS.googlenet(init_weights=False))
    planned = plan(model, images(64))
    assert_complete(model, planned, unused=("aux",))
    assert blocks(planned) == [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    assert layers(planned) == ["conv1.conv", "conv2.conv", "conv3.conv", "fc"]
    assert any(note.startswith("aux1.conv.conv and 5 more: not called") for note in planned.notes)
    inception = next(unit for unit in planned.units if unit.name == "inception3a")
    assert [site.name for site in inception.sites] == ["inception3a.branch2.0", "inception3a.branch3.0", "inception3a"]
    assert high(planned) == ["inception5b"]


def test_efficientnet_lite0_has_16_blocks_and_its_activations_inside_the_batch_norms():
    model = randomised(timm.create_model("tf_efficientnet_lite0"))
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert len(blocks(planned)) == 16
    assert layers(planned) == ["conv_stem", "conv_head", "classifier"]
    assert names(planned)[:3] == ["bn1.act", "blocks.0.0.bn1.act", "blocks.0.0.conv_pw"]
    assert high(planned) == ["bn2.act"]


def test_resnet50_of_timm_has_16_bottlenecks_each_with_three_sites():
    model = randomised(timm.create_model("resnet50"))
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert len(blocks(planned)) == 16
    assert layers(planned) == ["conv1", "fc"]
    assert {tuple(s.name.split(".")[-1] for s in u.sites) for u in planned.units if u.kind == "block"} == {
        ("act1", "act2", "act3")
    }
    assert high(planned) == ["layer4.2.act3"]


ATTENTION = [f"attn:scaled_dot_product_attention{end}" for end in ("<0", "<1", "<2", "<3", "")]


def test_vision_transformer_has_12_blocks_and_quantises_inputs_of_linears_and_operands_of_attention():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32)
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert blocks(planned) == [f"blocks.{index}" for index in range(12)]
    assert layers(planned) == ["patch_embed.proj", "head"]
    for unit in planned.units[1:-1]:
        expected = [f"{unit.name}.{site}" for site in ("norm1", *ATTENTION, "norm2", "mlp.act")]
        assert [site.name for site in unit.sites][:8] == expected
        assert unit.channel_axis == 2
    assert planned.units[12].steps == (("blocks.11", 0), ("norm", 0))
    assert high(planned) == ["norm"]


def test_convnext_has_its_blocks_and_takes_norms_between_stages_into_units():
    model = timm.create_model("convnext_atto")
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert len(blocks(planned)) == 12
    assert layers(planned) == ["stem.0", *(f"stages.{stage}.downsample.1" for stage in (1, 2, 3)), "head.fc"]
    assert all(tensor.unit is not None for tensor in planned.tensors)
    assert {unit.channel_axis for unit in planned.units} == {1}


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_swin_has_12_blocks_whoever_wrote_it(source):
    if source == "timm":
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2, 6, 2))
    else:
        model = MODELS.swin_t()
    planned = plan(model, images(56, batch=1))
    assert_complete(model, planned)
    with_attention = [unit for unit in planned.units if any(path.endswith("attn.qkv") for path in unit.layers)]
    assert len(with_attention) == 12
    assert {len(unit.layers) for unit in with_attention} == {4}
    assert {len(unit.sites) for unit in with_attention} == {8, 9}  # the last one also makes the classifier's input
    assert all(tensor.unit is not None for tensor in planned.tensors)
    assert {unit.channel_axis for unit in with_attention} == {3}


def test_densenet_has_a_unit_per_dense_layer_although_it_takes_a_list():
    model = randomised(MODELS.densenet121())
    planned = plan(model, images(32))
    assert_complete(model, planned)
    assert len(blocks(planned)) == 58
    third = next(unit for unit in planned.units if unit.name == "features.denseblock1.denselayer3")
    assert [planned.units[index].name for index in third.frontier] == [
        "features.conv0",
        "features.denseblock1.denselayer1",
        "features.denseblock1.denselayer2",
    ]


def test_encoder_of_torch_has_a_unit_per_layer():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 3)
    planned = plan(encoder, torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)))
    assert_complete(encoder, planned)
    assert blocks(planned) == ["layers.0", "layers.1", "layers.2"]
    assert of_role(planned, "first") == ["layers.0.self_attn.in_proj"]
    assert of_role(planned, "last") == ["layers.2.linear2"]
    assert "layers.2.norm2" not in names(planned)  # the output
    assert "layers.1.norm2" in names(planned)


SMALL_BERT = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)
TOKENS = {
    "input_ids": torch.arange(21).reshape(3, 7),
    "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7]),
}


@pytest.mark.parametrize("task", [BertForSequenceClassification, BertForQuestionAnswering])
def test_bert_has_a_unit_per_encoder_layer_and_eight_bit_embeddings(task):
    model = task(SMALL_BERT)
    planned = plan(model, TOKENS)
    assert_complete(model, planned)
    assert blocks(planned) == ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    embeddings = [weight for weight in planned.weights if weight.role == "embedding"]
    assert len(embeddings) == 3
    assert {(weight.bits, weight.unit) for weight in embeddings} == {(8, None)}
    assert of_role(planned, "first") == []
    last, entering = {
        BertForSequenceClassification: ("classifier", "bert.pooler.activation"),
        BertForQuestionAnswering: ("qa_outputs", "bert.encoder.layer.1.output.LayerNorm"),
    }[task]
    assert of_role(planned, "last") == [last]
    assert high(planned) == [entering]
    first = planned.units[0]
    assert len(first.layers) == 6
    assert [site.name.rpartition(".")[2] for site in first.sites] == [
        *(f"self:scaled_dot_product_attention{end}" for end in ("<0", "<1", "<2", "<3", "")),
        "LayerNorm",
        "intermediate_act_fn",
        "LayerNorm",
    ]
    assert first.input_bytes >= 7 * 16 * 4
    assert planned.units[1].frontier == (0,)


def test_a_batch_of_a_tokeniser_plans_as_the_dict_that_it_holds():
    model = BertForSequenceClassification(SMALL_BERT)
    assert plan(model, BatchEncoding(TOKENS)).units == plan(model, TOKENS).units


def test_detector_keeps_its_heads_in_floating_point_and_quantises_backbone_and_neck():
    detection = MODELS.detection
    model = randomised(detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None))
    photo = torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
    planned = plan(model, [photo, photo.flip(1)])
    assert_complete(model, planned, unused=("rpn", "roi_heads"))
    assert blocks(planned) == [f"backbone.body.{index}" for index in range(1, 16)]
    assert "rpn: detection head, stays in floating point" in planned.notes
    assert "roi_heads: detection head, stays in floating point" in planned.notes
    assert not any(name.startswith(("rpn", "roi_heads")) for name in names(planned))
    assert of_role(planned, "first") == ["backbone.body.0.0"]
    assert of_role(planned, "last") == []  # the last layers are the heads'
    assert layers(planned)[-2:] == ["backbone.fpn.inner_blocks.0.0", "backbone.fpn.layer_blocks.0.0"]
    assert planned.units[0].frontier == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "swin_t", "efficientnet_b0", "convnext_tiny", "inception_v3"])
def test_large_models_of_torchvision_are_planned_whole_at_their_own_size(name):
    options = {"init_weights": False} if name == "inception_v3" else {}
    model = getattr(MODELS, name)(**options)
    planned = plan(model, images(299 if name == "inception_v3" else 224, batch=1))
    assert_complete(model, planned, unused=("AuxLogits",))
    assert len(blocks(planned)) >= 8
    assert len(of_role(planned, "first")) == len(of_role(planned, "last")) == 1
