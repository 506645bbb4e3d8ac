import dataclasses
import math

import numpy as np
import photographs
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from imagenet_s import ConsistencyLoss, MixTransform, Pipeline, PipelineError, WorstOf
from imagenet_s.decoding import decoder
from imagenet_s.mixing import random_box
from imagenet_s.resizing import resizer

DECODERS, RESIZERS = ("pillow", "turbo-boxup"), ("pillow-bilinear", "pillow-box", "opencv-linear", "opencv-nearest")
MIX = MixTransform(DECODERS, RESIZERS, size=28, seed=3)
PHOTO = photographs.jpeg(photographs.photograph("china.jpg")[:131, :203].copy())


def test_every_combination_comes_as_often_as_every_other():
    drawn = [MIX.draws(index=index, epoch=epoch)[0] for epoch in range(4) for index in range(5000)]
    expected, deviation = 20_000 / 8, math.sqrt(20_000 * 1 / 8 * 7 / 8)
    for left in DECODERS:
        for right in RESIZERS:
            assert abs(drawn.count((left, right)) - expected) < 4 * deviation, (left, right)


def test_successive_epochs_indices_and_seeds_draw_independently():
    first = [MIX.draws(index=index, epoch=0)[0] for index in range(2000)]
    others = {
        "epoch": [MIX.draws(index=index, epoch=1)[0] for index in range(2000)],
        "index": [MIX.draws(index=index + 1, epoch=0)[0] for index in range(2000)],
        "seed": [dataclasses.replace(MIX, seed=4).draws(index=index, epoch=0)[0] for index in range(2000)],
    }
    for name, other in others.items():
        same = sum(a == b for a, b in zip(first, other, strict=True))
        assert abs(same - 250) < 4 * math.sqrt(2000 * 1 / 8 * 7 / 8), name


def test_a_sample_is_what_was_drawn_makes_of_its_crop():
    for index in range(20):
        ((left, right),) = MIX.draws(index=index, epoch=2)
        image = decoder(left).decode(PHOTO)
        top, x, height, width = MIX.box(image.shape, index=index, epoch=2)
        piece = np.ascontiguousarray(image[top : top + height, x : x + width])
        expected = Pipeline(size=28).tensor(resizer(right).resize(piece, (28, 28)))
        found = MIX(PHOTO, index=index, epoch=2)
        assert found.shape == (3, 28, 28)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)


def test_all_combinations_see_the_same_crop():
    boxes = {
        MixTransform((left,), (right,), 28, seed=3).box((131, 203), index=7, epoch=1)
        for left in DECODERS
        for right in RESIZERS
    }
    assert boxes == {MIX.box((131, 203), index=7, epoch=1)}
    assert boxes != {MIX.box((131, 203), index=7, epoch=2)}
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[:, None, None], 200, 1).repeat(3, 2)
    data = photographs.jpeg(ramp, quality=100, subsampling="4:4:4")
    unbiased = dataclasses.replace(MIX, resizers=RESIZERS[:3])  # OpenCV's nearest is half a pixel off by design
    views = unbiased.views(data, index=5, epoch=0, count=12) * 0.229 * 255  # about grey levels, so rows of the image
    assert np.ptp(views.mean(axis=(1, 2, 3))) < 0.5


def test_more_views_begin_with_the_one_of_a_call():
    views = MIX.views(PHOTO, index=3, epoch=0, count=5)
    assert views.shape == (5, 3, 28, 28)
    assert np.array_equal(views[0], MIX(PHOTO, index=3, epoch=0))
    assert len({view.tobytes() for view in views}) == len(set(MIX.draws(index=3, epoch=0, count=5))) > 1


def test_the_evaluation_geometry_is_the_pipelines():
    pipeline = Pipeline(size=28, resize_size=28, mean=(127.5,) * 3, std=(64.0,) * 3, scale=1.0)
    mix = MixTransform(DECODERS, RESIZERS, 28, "eval", pipeline=pipeline)
    ((left, right),) = mix.draws(index=0, epoch=0)
    expected = dataclasses.replace(pipeline, decoder=left, resizer=right)(PHOTO)
    assert np.array_equal(mix(PHOTO, index=0, epoch=0), expected)


class Photos(Dataset):
    def __init__(self):
        self.files = list(photographs.small(12))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return index, MIX(self.files[index], index=index, epoch=1)


def test_the_number_of_workers_changes_no_sample():
    photos = Photos()
    alone = torch.stack([torch.from_numpy(photos[index][1]) for index in range(12)])
    for workers in (0, 2):
        found = torch.empty_like(alone)
        generator = torch.Generator().manual_seed(workers)
        loader = DataLoader(photos, 3, shuffle=True, num_workers=workers, generator=generator)
        for indices, tensors in loader:
            found[indices] = tensors
        assert torch.equal(found, alone)


def test_boxes_are_distributed_as_torchvisions():
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    ours = np.array([random_box(300, 400, np.random.default_rng(seed)) for seed in range(4000)])
    top, left, height, width = ours.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    for figure in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 3] / box[:, 2], lambda box: box[:, 0]):
        a, b = figure(ours).astype(float), figure(theirs).astype(float)
        assert abs(a.mean() - b.mean()) < 4 * math.sqrt((a.var() + b.var()) / 4000)
        assert abs(a.std() / b.std() - 1) < 0.1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1, 100, (0, 49, 1, 1)), (100, 1, (49, 0, 1, 1)), (10, 1000, (0, 493, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_needles_get_the_middle(height, width, expected):
    found = [random_box(height, width, np.random.default_rng(seed)) for seed in range(50)]
    assert expected in found
    for top, left, h, w in found:
        assert top >= 0
        assert left >= 0
        assert 1 <= h <= height - top
        assert 1 <= w <= width - left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoders": ()}, "without decoders"),
        ({"resizers": ("pillow-box", "pillow-box")}, "twice"),
        ({"resizers": ("pilow-box",)}, "pilow-box"),
        ({"size": 0}, "size must be"),
    ],
)
def test_transforms_that_cannot_be_are_refused(change, message):
    with pytest.raises(PipelineError, match=message):
        dataclasses.replace(MIX, **change)


def little_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, 5))


def test_the_worst_view_of_each_image_is_trained_on():
    net, labels = little_net(), torch.tensor([0, 3, 4])
    views = torch.rand(3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 4
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    losses = torch.stack([functional.cross_entropy(net(v), labels, reduction="none") for v in views.unbind(1)], 1)
    loss = WorstOf(4)(net, views, labels)
    assert torch.allclose(loss, losses.max(1).values.mean())
    assert len(set(losses.argmax(1).tolist())) > 1
    loss.backward()
    assert net[0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_choosing_the_worst_leaves_modes_and_statistics_alone():
    net = little_net()
    net.train()
    net[3].eval()
    calls = []
    net.register_forward_pre_hook(lambda module, inputs: calls.append((module.training, torch.is_grad_enabled())))
    WorstOf(2)(net, torch.rand(3, 2, 3, 8, 8), torch.tensor([0, 1, 2]))
    assert calls == [(False, False), (False, False), (True, True)]
    assert [module.training for module in net] == [True, True, True, False, True]
    assert net[1].num_batches_tracked == 1


def test_consistency_is_priced_by_the_divergence():
    first, second = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.5, 1.0, 0.0]])
    labels = torch.tensor([0])
    p, q = first.softmax(-1), second.softmax(-1)
    expected = -p[0, 0].log() + 0.7 * (p * (p / q).log()).sum()
    assert torch.allclose(ConsistencyLoss(0.7)(first, second, labels), expected)
    assert torch.allclose(ConsistencyLoss(5.0)(first, first, labels), functional.cross_entropy(first, labels))


@pytest.mark.parametrize("lam", [-1.0, math.nan, math.inf])
def test_weights_that_mean_nothing_are_refused(lam):
    with pytest.raises(PipelineError, match="lam"):
        ConsistencyLoss(lam)


def test_other_than_k_views_are_refused():
    with pytest.raises(PipelineError, match="2 views of each image, expected 3"):
        WorstOf(3)(little_net(), torch.rand(1, 2, 3, 8, 8), torch.tensor([0]))
    with pytest.raises(PipelineError, match="k must be at least 1"):
        WorstOf(0)
