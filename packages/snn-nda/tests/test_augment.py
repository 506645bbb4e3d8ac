"""Augmentation inside a training: lots, labels and what is mixed."""

import numpy as np
import pytest
import torch

from core_utils.training import Arrays, Loader
from snn_nda.augment import Draw, Geometric, Mixed, Photometric, indexed
from snn_nda.nda import NDA, Augment

FRAMES = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (6, 3, 2, 12, 12)).astype(np.float32))
LABELS = torch.arange(6) % 3


def subset(draw, rows):
    return Draw(draw.seed, draw.epoch, tuple(draw.indices[row] for row in rows))


@pytest.mark.parametrize("augment", [Geometric(NDA("M3N2")), Photometric()])
def test_a_recordings_lot_depends_on_nothing_but_seed_epoch_and_index(augment):
    draw = Draw(7, 3, (4, 9, 2, 0, 5, 1))
    together, _ = augment(FRAMES, LABELS, draw)
    rows = [5, 2, 0]
    alone, _ = augment(FRAMES[rows], LABELS[rows], subset(draw, rows))
    assert torch.equal(alone, together[rows])
    for other in (Draw(8, 3, draw.indices), Draw(7, 4, draw.indices), Draw(7, 3, (3, 8, 1, 6, 7, 10))):
        assert not torch.equal(augment(FRAMES, LABELS, other)[0], together)


def test_the_operations_are_those_that_nda_gives_for_the_same_place():
    nda = NDA("M2N1")
    moved, labels = Geometric(nda)(FRAMES, LABELS, Draw(1, 2, (3, 4, 5, 6, 7, 8)))
    assert torch.equal(moved, nda.apply(FRAMES, nda.params_at(1, 2, [3, 4, 5, 6, 7, 8], (12, 12))))
    assert torch.equal(labels, LABELS)


def test_a_mirrored_gesture_gets_the_label_of_its_mirror_image():
    nda, draw = NDA(flip=0.5, num_ops=0), Draw(0, 0, tuple(range(6)))
    moved, labels = Geometric(nda, {1: 2, 2: 1})(FRAMES, LABELS, draw)
    mirrored = [params.flipped for params in nda.params_at(0, 0, range(6), (12, 12))]
    assert 0 < sum(mirrored) < 6
    swapped = {0: 0, 1: 2, 2: 1}
    expected = [swapped[label] if flip else label for label, flip in zip(LABELS.tolist(), mirrored, strict=True)]
    assert labels.tolist() == expected
    assert labels.tolist() != LABELS.tolist()
    for row, flip in enumerate(mirrored):
        assert torch.equal(moved[row], FRAMES[row].flip(-1) if flip else FRAMES[row])


def test_mixing_comes_after_the_operations_and_shares_the_labels():
    draw = Draw(0, 1, tuple(range(6)))
    first = Geometric(NDA("M1N1"))
    mixed, shares = Mixed("cutmix", 3, first)(FRAMES, LABELS, draw)
    moved, _ = first(FRAMES, LABELS, draw)
    assert shares.shape == (6, 3)
    assert torch.allclose(shares.sum(1), torch.ones(6))
    kept = (mixed == moved).flatten(1).float().mean(1)
    own = shares[torch.arange(6), LABELS]
    # Every pixel outside the box is the recording's own, and its own class has at least their share.
    assert (kept >= own.min() - 1e-6).all()
    again, same = Mixed("cutmix", 3, first)(FRAMES, LABELS, draw)
    assert torch.equal(again, mixed)
    assert torch.equal(same, shares)
    blended, _ = Mixed("mixup", 3)(FRAMES, LABELS, draw)
    assert not torch.equal(blended, FRAMES)


def test_half_of_the_photometric_lots_scale_and_half_add_noise():
    count = 400
    frames = torch.ones(count, 1, 2, 4, 4)
    changed, _ = Photometric(0.5, 0.1)(frames, torch.zeros(count), Draw(0, 0, tuple(range(count))))
    spread = changed.flatten(1).std(1)
    scaled = spread == 0
    assert 150 < int(scaled.sum()) < 250  # 200 +- 5 standard deviations of the binomial
    factors = changed.flatten(1)[scaled, 0]
    assert (factors.min() >= 0.5) & (factors.max() <= 1.5)
    assert factors.std().item() == pytest.approx(1 / 12**0.5, rel=0.15)  # uniform over [0.5, 1.5]
    noise = (changed[~scaled] - 1).std().item()
    assert noise == pytest.approx(0.1, rel=0.05)
    assert (frames == 1).all()


def test_a_brightness_is_undone_by_the_first_batch_normalisation():
    """Why photometric augmentation has little to give: in training mode a common scale changes nothing."""
    from core_utils.spiking.layout import time_first
    from snn_nda.networks import tiny_vgg

    torch.manual_seed(0)
    model = tiny_vgg(size=12, widths=(8, 8)).double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-300  # which adds nothing to a variance
    frames = time_first(FRAMES.double())
    # A power of two: every product is exact, so that no threshold is crossed by rounding.
    assert torch.equal(model(frames), model(2 * frames))


def test_an_index_follows_every_item_whatever_the_transform_and_the_workers():
    def add(item, rng):
        return item[0] + rng.integers(1, 100), item[1]

    loader = Loader(Arrays(np.arange(10), np.arange(10) % 2), 4, seed=3, transform=add)
    seen = [indexed(Loader(loader.dataset, 4, seed=3, transform=add)).batches(1), loader.batches(1)]
    for ((values, labels), indices), (plain, plain_labels) in zip(*seen, strict=True):
        assert torch.equal(values, plain)
        assert torch.equal(labels, plain_labels)
        assert torch.equal(indices % 2, labels)
    plain = indexed(Loader(loader.dataset, 4, seed=3))
    assert torch.equal(torch.cat([i for _, i in plain.batches(0)]), torch.cat([v for (v, _), _ in plain.batches(0)]))


def test_a_batch_moves_as_its_items_do_in_a_loader():
    """The other way into a training: `snn_nda.Augment`, item by item, in the loader's processes."""
    nda, labels = NDA("M2N2", flip=0.5), LABELS
    dataset = list(zip(FRAMES, labels.tolist(), strict=True))
    items = Loader(dataset, 6, seed=4, shuffle=False, transform=Augment(nda.policy, {1: 2, 2: 1}))
    ((by_item, item_labels),) = items.batches(3)
    together, batch_labels = Geometric(nda, {1: 2, 2: 1})(FRAMES, labels, Draw(4, 3, tuple(range(6))))
    assert torch.equal(by_item, together)
    assert torch.equal(item_labels, batch_labels)
