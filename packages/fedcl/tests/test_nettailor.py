"""NetTailor students: golden counts and complexities, gates, pruning, losses, and that the backbone never changes."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedcl import Backbone, ConfigError, mlp_backbone, tailor, tailor_loss, wrn26
from fedcl.models.backbones import ScaledResidual, WideBlock
from fedcl.models.complexity import Costs, expected_complexity

# [NT] code by section 2 of the specification: trained parameters and the released code's complexity at initialisation.
GOLDEN = [
    ("resnet18", 1, 533274, 0.651338),
    ("resnet18", 3, 1150887, 0.565397),
    ("resnet18", 5, 1460400, 0.512144),
    ("resnet34", 1, 1098154, 0.803597),
    ("resnet34", 3, 2755399, 0.703901),
    ("resnet34", 5, 4088416, 0.621928),
    ("resnet50", 1, 1232394, 0.820171),
    ("resnet50", 3, 3371911, 0.717546),
    ("resnet50", 5, 5320320, 0.631325),
    ("wrn26", 1, 307746, 0.767848),
    ("wrn26", 3, 781495, 0.667965),
    ("wrn26", 5, 1097032, 0.593850),
]


def backbone(name):
    if name == "wrn26":
        return wrn26()
    return getattr(pytest.importorskip("torchvision").models, name)()


def small(max_skip=3, classes=3, **options):
    torch.manual_seed(0)
    blocks = [WideBlock(4, 8, 2), WideBlock(8, 8, 1), WideBlock(8, 16, 2), WideBlock(16, 16, 1)]
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    body = Backbone(stem, blocks, "basic", tail=nn.BatchNorm2d(16))
    return tailor(body, num_classes=classes, max_skip=max_skip, input_shape=(3, 16, 16), **options)


@pytest.mark.parametrize(("name", "max_skip", "params", "complexity"), GOLDEN)
def test_golden_parameters_and_complexity(name, max_skip, params, complexity):
    shape = (3, 64, 64) if name == "wrn26" else (3, 224, 224)
    net = tailor(backbone(name), num_classes=10, max_skip=max_skip, input_shape=shape)
    assert net.count("params") == params
    assert sum(each.numel() for each in net.parameters() if each.requires_grad) == params
    assert net.complexity("reference").item() == pytest.approx(complexity, abs=5e-7)


def test_the_exact_complexity_counts_the_stem_as_it_is():
    net = tailor(backbone("resnet18"), num_classes=10)
    assert net.costs.stem == 119_619_584
    assert net.costs.reference_stem == 29_904_896
    assert net.complexity().item() == pytest.approx(0.814290, abs=5e-7)
    net.costs.reference_stem = net.costs.stem
    assert net.complexity("reference").item() == pytest.approx(0.537504, abs=5e-7)


def test_flops_are_counted_by_hand():
    net = tailor(
        Backbone(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)), [WideBlock(4, 8, 2)]),
        num_classes=5,
        max_skip=1,
        input_shape=(3, 8, 8),
    )
    assert net.costs.stem == 8 * 8 * 3 * 4 * 9 + 8 * 8 * 4 * 2
    block = 4 * 4 * (4 * 8 * 9 + 8 * 2 + 8 * 8 * 9 + 8 * 2)
    assert net.costs.paths == [[block, 4 * 4 * (4 * 8 + 8 * 2)]]
    assert net.costs.head == 8 * 5 + 5
    assert net.count("flops") == net.costs.stem + sum(net.costs.paths[0]) + 45


def test_gates_sum_to_one_and_begin_as_the_paper_s():
    for count, gate in enumerate(small(max_skip=3).gates(), start=1):
        n = min(count, 3)
        assert gate.sum().item() == pytest.approx(1)
        assert gate[0].item() == pytest.approx(math.e**2 / (math.e**2 + n * math.e**-2))


def by_definition(scores, costs, whole):
    """E of the specification's formula, written with sets of paths instead of products of tensors."""
    gates = [[math.exp(s) / sum(map(math.exp, row)) for s in row] for row in scores]
    paths = [(layer, j, layer - max(j, 1)) for layer, row in enumerate(scores, start=1) for j in range(len(row))]

    def prod(chosen):
        return math.prod(1 - gates[layer - 1][j] for layer, j in chosen)

    total = 0.0
    for layer, j, q in paths:
        into = 0.0 if q == 0 else prod([(a, b) for a, b, _ in paths if a == q])
        out = 0.0 if layer == len(scores) else prod([(a, b) for a, b, source in paths if source == layer])
        total += costs[layer - 1][j] / whole * (gates[layer - 1][j] - into - out)
    return total


@settings(max_examples=5)
@given(data=st.data(), layers=st.integers(1, 4), skip=st.integers(0, 3))
def test_complexity_is_its_definition_and_its_gradient_finite_differences(data, layers, skip):
    sizes = [min(skip, layer) + 1 for layer in range(1, layers + 1)]
    scores = [data.draw(st.lists(st.floats(-3, 3), min_size=n, max_size=n)) for n in sizes]
    costs = [data.draw(st.lists(st.integers(1, 50), min_size=n, max_size=n)) for n in sizes]
    stem = data.draw(st.integers(1, 50))

    def value(flat):
        rows = torch.split(flat, sizes)
        return expected_complexity([row.softmax(0) for row in rows], Costs(stem, stem, costs), "exact")

    flat = torch.tensor([s for row in scores for s in row], dtype=torch.float64, requires_grad=True)
    whole = stem + sum(row[0] for row in costs)
    assert value(flat).item() == pytest.approx(by_definition(scores, costs, whole), abs=1e-10)
    assert torch.autograd.gradcheck(value, (flat,), eps=1e-6, atol=1e-6)


def test_complexity_falls_when_a_block_s_score_does():
    net = small()
    before = net.complexity().item()
    with torch.no_grad():
        net.scores[1][0] -= 1
    assert net.complexity().item() < before


def test_training_leaves_the_backbone_bit_identical():
    net = small(max_skip=2)
    before = copy.deepcopy(net.backbone.state_dict())
    net.train()
    for _ in range(3):
        x, y = torch.randn(5, 3, 16, 16), torch.randint(3, (5,))
        loss = tailor_loss(net(x), y, net=net).total
        parameters = [each for each in net.parameters() if each.requires_grad]
        for weight, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            weight.data.sub_(gradient, alpha=0.1)
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    assert not any(name.startswith("backbone.") for name in net.task_state())
    # The normalisation that belongs to the task did move.
    assert net.tail.num_batches_tracked.item() == 3


def test_the_first_two_paths_read_the_same_features_and_activation_follows_the_merge():
    net = tailor(mlp_backbone(6, width=4, blocks=2), num_classes=2, max_skip=2, input_shape=(6,)).eval()
    x0 = net.embed(torch.randn(3, 6))
    proxies, scores = net.proxies, [score.softmax(0) for score in net.scores]

    def proxy(layer, j, x):
        p = proxies[layer - 1][j - 1]
        return torch.relu(x @ p.first + p.first_bias) @ p.second + p.second_bias

    blocks = net.backbone.blocks
    x1 = torch.relu(scores[0][0] * blocks[0](x0) + scores[0][1] * proxy(1, 1, x0))
    merged = scores[1][0] * blocks[1](x1) + scores[1][1] * proxy(2, 1, x1) + scores[1][2] * proxy(2, 2, x0)
    torch.testing.assert_close(net.tailored(x0), net.classifier(torch.relu(merged)))


def test_detached_features_train_their_own_layer_alone_and_count_statistics_once():
    net = small(max_skip=2).train()
    x = torch.randn(6, 3, 16, 16)
    logits, features = net.features(x)
    last = list(net.proxies[3].parameters())
    first = list(net.proxies[0].parameters())
    gradients = torch.autograd.grad(features[3].square().mean(), [*last, *first], allow_unused=True)
    assert all(gradient is not None for gradient in gradients[: len(last)])
    assert all(gradient is None for gradient in gradients[len(last) :])
    assert {m.num_batches_tracked.item() for m in net.proxies.modules() if isinstance(m, nn.BatchNorm2d)} == {1}
    # In value they are the live features, here seen through logits: the same batch statistics normalise both.
    torch.testing.assert_close(net._classify(features[3]), logits)


def test_the_loss_is_the_sum_of_its_terms_and_divides_by_all_layers():
    net = small(max_skip=1).eval()
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    teacher = small(max_skip=1).eval()
    logits, features = net.features(x)
    theirs = teacher.features(x + 0.1, detached=False)
    features[1] = None  # as where a layer was pruned away
    terms = tailor_loss(logits, y, net=net, feats=features, teacher=theirs, gamma_complexity=0.5, gamma_teacher=2.0)
    distances = [((a - b) ** 2).mean() for a, b in zip(features, theirs[1], strict=True) if a is not None]
    omega = (((logits - theirs[0]) ** 2).mean() + sum(distances)) / 4
    torch.testing.assert_close(terms.teacher, omega)
    torch.testing.assert_close(terms.ce, nn.functional.cross_entropy(logits, y))
    torch.testing.assert_close(terms.total, terms.ce + 0.5 * net.complexity() + 2.0 * omega)
    with pytest.raises(ConfigError, match="the teacher has 4 layers, the student gave 0"):
        tailor_loss(logits, y, net=net, teacher=theirs)


def test_pruning_cuts_the_smallest_gates_and_renormalises():
    net = small(max_skip=1).eval()
    with torch.no_grad():
        for score, value in zip(net.scores, (0.9, -1.0, 0.5, 0.8), strict=True):
            score[0] = value
        net.scores[0][1] = -9.0  # this proxy falls below the threshold
    x = torch.randn(2, 3, 16, 16)
    before = net.count("flops")
    report = net.prune(n_main=1)
    assert report.main == (2,)
    assert report.proxies == ((1, 1),)
    assert report.flops == (before, before - net.costs.paths[1][0] - net.costs.paths[0][1])
    assert report.params[0] - report.params[1] == 2 + 4 * 8 + 16  # two scores and the cut proxy
    assert [gate.tolist() for gate in net.gates()][:2] == [[1.0, 0.0], [0.0, 1.0]]
    kept = net.task_state()
    other = small(max_skip=1).eval()
    other.load_task_state(kept)
    torch.testing.assert_close(other(x), net(x))
    assert other.count("flops") == net.count("flops")


def test_a_layer_that_nobody_reads_is_cut_with_its_paths():
    net = tailor(mlp_backbone(6, 4, 3), num_classes=2, max_skip=2, input_shape=(6,)).eval()
    with torch.no_grad():
        net.scores[2].copy_(torch.tensor([-9.0, -9.0, 2.0]))  # layer 3 reads x_1 alone
    x = torch.randn(5, 6)
    before = net(x)
    report = net.prune(n_main=1, proxy_threshold=0.001)
    assert net.features(x)[1][1] is None
    assert report.main == (2, 3)
    assert (2, 1) in report.proxies
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-3)  # what was cut had a share of 1.7e-5 each


def test_cutting_the_last_path_is_refused_before_anything_changes():
    net = tailor(mlp_backbone(6, 4, 2), num_classes=2, max_skip=1, input_shape=(6,))
    before = net.task_state()
    with pytest.raises(ConfigError, match="cuts the last path"):
        net.prune(n_main=2, proxy_threshold=0.9)
    assert all(torch.equal(value, before[name]) for name, value in net.task_state().items())
    with pytest.raises(ConfigError, match=r"n_main must lie in 0..2, got 3"):
        net.prune(n_main=3)


@settings(max_examples=12)
@given(drops=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=9), seed=st.integers(0, 9))
def test_whatever_is_dropped_the_rest_runs_or_is_refused(drops, seed):
    torch.manual_seed(seed)
    net = tailor(mlp_backbone(6, 4, 4), num_classes=2, max_skip=3, input_shape=(6,)).eval()
    with torch.no_grad():
        for layer, j in drops:
            if j < len(net.scores[layer]):
                net.scores[layer][j] = -20.0
    try:
        net.prune(n_main=sum(j == 0 for _, j in set(drops)), proxy_threshold=1e-6)
    except ConfigError:
        return
    assert torch.isfinite(net(torch.randn(3, 6))).all()
    for kept, gate in zip(net._kept, net.gates(), strict=True):
        assert gate.sum().item() == pytest.approx(1.0 if kept else 0.0)
        assert [j for j, value in enumerate(gate.tolist()) if value > 0] == list(kept)


def test_a_structure_that_does_not_fit_is_named():
    odd = Backbone(nn.Identity(), [nn.Conv2d(3, 4, 2)], "basic")
    with pytest.raises(ConfigError, match=r"layer 1 has features \[4, 7, 7\], which those 1 back, \[3, 8, 8\]"):
        tailor(odd, num_classes=2, input_shape=(3, 8, 8))
    with pytest.raises(ConfigError, match="Linear has no conv1, so it is no ResNet"):
        tailor(nn.Linear(2, 2), num_classes=2)
    with pytest.raises(ConfigError, match=r"blocks names 'body.9', which the network lacks"):
        tailor(nn.Sequential(nn.Linear(2, 2)), num_classes=2, blocks=["body.9"])
    with pytest.raises(ConfigError, match=r"block 1 does not take features of shape \[5\]"):
        tailor(Backbone(nn.Linear(6, 5), [ScaledResidual(4)], "vector"), num_classes=2, input_shape=(6,))
    with pytest.raises(ConfigError, match="the state belongs to another student"):
        small().load_task_state(small(classes=4).task_state())


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_student_without_proxies_computes_what_its_backbone_does(library):
    module = pytest.importorskip(library)
    torch.manual_seed(0)
    net = module.models.resnet18() if library == "torchvision" else module.create_model("resnet18")
    net.eval()
    x = torch.randn(2, 3, 64, 64)
    student = tailor(copy.deepcopy(net), num_classes=1000, max_skip=0, input_shape=(3, 64, 64)).eval()
    with torch.no_grad():
        student.classifier.weight.copy_(net.fc.weight)
        student.classifier.bias.copy_(net.fc.bias)
        torch.testing.assert_close(student(x), net(x), rtol=1e-4, atol=1e-4)
