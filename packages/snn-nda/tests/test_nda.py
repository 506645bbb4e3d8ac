"""NDA on frames: batches, operations one after the other, reproducibility, and whatever frames users have."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core_utils.training.loading import Arrays, Loader
from snn_nda import functional
from snn_nda.errors import FramesError, PolicyError
from snn_nda.nda import NDA, Augment
from snn_nda.params import Cutout, HFlip, Params, Roll, Rotate, ShearX
from snn_nda.policies import NONE, PAPER, Policy
from snn_nda.sampling import transform

SIZE = (12, 10)

operations = st.one_of(
    st.builds(HFlip, swap_polarity=st.booleans()),
    st.builds(Roll, dy=st.integers(-14, 14), dx=st.integers(-14, 14), wrap=st.booleans()),
    st.builds(Rotate, degrees=st.floats(-180, 180)),
    st.builds(ShearX, degrees=st.floats(-80, 80)),
    st.builds(Cutout, y=st.integers(0, 11), x=st.integers(0, 9), length=st.integers(0, 8)),
)
batches = st.lists(st.lists(operations, max_size=5).map(tuple), min_size=1, max_size=5)


def frames_of(batch, dtype=torch.float32):
    return torch.randint(1, 90, (batch, 3, 2, *SIZE), generator=torch.Generator().manual_seed(batch)).to(dtype)


def one_by_one(x, params, interpolation="nearest"):
    """The operations of one sample in a row, each by its own function."""
    for operation in params.operations:
        match operation:
            case HFlip():
                x = functional.hflip(x)
                x = x.flip(-3) if operation.swap_polarity else x
            case Roll():
                x = functional.roll(x, operation.dy, operation.dx, operation.wrap)
            case Rotate():
                x = functional.rotate(x, operation.degrees, interpolation)
            case ShearX():
                x = functional.shear_x(x, operation.degrees, interpolation)
            case Cutout():
                x = functional.cutout(x, operation.y, operation.x, operation.length)
    return x


@given(batches, st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int32, torch.uint8]))
def test_a_batch_is_its_samples_with_their_operations_in_a_row(operations, dtype):
    params = [Params(each) for each in operations]
    x = frames_of(len(params), dtype)
    before = x.clone()
    moved = transform(x, params)
    assert moved.dtype == dtype
    assert torch.equal(moved, torch.stack([one_by_one(*each) for each in zip(x, params, strict=True)]))
    assert torch.equal(x, before)


@given(batches)
def test_a_bilinear_batch_is_its_samples_with_their_operations_in_a_row(operations):
    params = [Params(each) for each in operations]
    x = frames_of(len(params))
    rows = torch.stack([one_by_one(*each, "bilinear") for each in zip(x, params, strict=True)])
    torch.testing.assert_close(transform(x, params, "bilinear"), rows, rtol=1e-5, atol=1e-3)


def test_one_grid_sample_moves_a_whole_batch(monkeypatch):
    calls = []
    sampled = torch.nn.functional.grid_sample
    monkeypatch.setattr("snn_nda.sampling.grid_sample", lambda *a, **k: calls.append(a[0].shape) or sampled(*a, **k))
    NDA("M3N3", generator=torch.Generator().manual_seed(0))(frames_of(32))
    assert calls == [(32, 3 * 2, *SIZE)]


def test_every_sample_of_a_batch_has_lots_of_its_own():
    x = frames_of(1).expand(16, -1, -1, -1, -1)
    moved = NDA(generator=torch.Generator().manual_seed(0))(x)
    assert len({sample.numpy().tobytes() for sample in moved}) > 12


def test_drawn_parameters_applied_again_give_the_same_frames():
    x = frames_of(8)
    nda = NDA("M2N2", generator=torch.Generator().manual_seed(4))
    moved = nda(x)
    again = NDA("M2N2", generator=torch.Generator().manual_seed(4))
    params = again.sample_params(8, SIZE)
    stored = [Params.from_json(each.to_json()) for each in params]
    assert torch.equal(nda.apply(x, stored), moved)
    assert torch.equal(nda.apply(x[3], stored[3]), moved[3])


def test_a_recording_without_batch_keeps_its_shape():
    x = frames_of(1)[0]
    moved = NDA(generator=torch.Generator().manual_seed(1))(x)
    assert moved.shape == x.shape
    assert not torch.equal(moved, x)


def test_numpy_frames_are_taken_as_tensors_are():
    x = frames_of(3, torch.int16)
    nda, again = (NDA(generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(nda(x.numpy()), again(x))


def test_torchs_global_seed_decides_without_a_generator():
    x = frames_of(8)
    torch.manual_seed(3)
    first = NDA()(x)
    torch.manual_seed(3)
    assert torch.equal(NDA()(x), first)
    assert not torch.equal(NDA()(x), first)


def test_evaluation_changes_nothing():
    x = frames_of(4)
    assert torch.equal(NDA().eval()(x), x)
    assert torch.equal(NDA("none")(x), x)


def test_it_stands_in_a_network_that_is_initialised_and_learns_through_it():
    network = nn.Sequential(NDA(generator=torch.Generator().manual_seed(0)), nn.Flatten(1), nn.Linear(3 * 2 * 120, 2))
    network.apply(lambda module: nn.init.ones_(module.weight) if isinstance(module, nn.Linear) else None)
    x = frames_of(4).requires_grad_()
    network(x).sum().backward()
    assert (network[2].weight == 1).all()
    assert set(x.grad.unique().tolist()) <= {float(count) for count in range(0, 41, 2)}  # how often each pixel is read


def test_a_constructor_changes_its_preset():
    assert NDA().policy == PAPER
    assert NDA(magnitude=1, num_ops=2, ops=("roll", "shear"), flip=0, interpolation="bilinear").policy == Policy(
        magnitude=1, num_ops=2, ops=("roll", "shear"), flip=0.0, interpolation="bilinear"
    )
    assert NDA("code", data="n-caltech101").policy.flip == 0
    assert NDA(NONE).policy == NONE
    with pytest.raises(PolicyError, match="num_ops must lie between 0 and 4"):
        NDA(num_ops=5)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes:UserWarning")  # fewer cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_workers_gives_the_same_items_as_a_batch_on_the_device(workers):
    x, y = frames_of(23), torch.arange(23)
    loader = Loader(Arrays(x, y), 5, seed=7, transform=Augment(PAPER), workers=workers)
    for epoch in (0, 1):
        batches = list(loader.batches(epoch))
        moved, labels = (torch.cat(each) for each in zip(*batches, strict=True))
        assert labels.tolist() == loader.order(epoch).tolist()
        nda = NDA()
        assert torch.equal(moved, nda.apply(x[labels], nda.params_at(7, epoch, labels.tolist(), SIZE)))


def test_epochs_seeds_and_items_draw_differently():
    nda = NDA()
    streams = [tuple(nda.params_at(seed, epoch, range(20))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(streams)) == 4
    assert len(set(streams[0])) == 20


def test_a_mirrored_item_changes_the_label_that_the_map_names():
    x, y = frames_of(40), torch.arange(40) % 3
    augment = Augment(Policy(ops=(), num_ops=0, flip=0.5), {1: 2, 2: 1})
    for index in range(40):
        rng = np.random.default_rng(index)
        moved, label = augment((x[index], y[index]), rng)
        mirrored = torch.equal(moved, x[index].flip(-1))
        assert mirrored or torch.equal(moved, x[index])
        assert int(label) == ({0: 0, 1: 2, 2: 1}[int(y[index])] if mirrored else int(y[index]))


def test_not_a_number_stays_where_it_is_moved_to():
    x = torch.zeros(1, 1, 2, 6, 6)
    x[..., 2, 1] = torch.nan
    moved = transform(x, [Params((Roll(dy=1, dx=2), Cutout(y=0, x=0, length=2)))])
    assert moved.isnan().nonzero()[:, -2:].tolist() == [[3, 3], [3, 3]]


@pytest.mark.parametrize("shape", [(0, 3, 2, 8, 8), (2, 1, 2, 8, 8), (2, 0, 2, 8, 8), (1, 3, 2, 1, 1)])
def test_small_and_empty_batches_keep_their_shape(shape):
    x = torch.ones(shape)
    assert NDA("M3N3")(x).shape == shape
    assert NDA("M3N3")(x.to(torch.uint8)).dtype == torch.uint8


def test_frames_that_do_not_lie_in_a_row_are_taken():
    x = frames_of(4).permute(0, 1, 2, 4, 3)
    params = NDA().sample_params(4, (10, 12), np.random.default_rng(0))
    assert torch.equal(transform(x, params), transform(x.contiguous(), params))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda nda: nda(torch.zeros(2, 8, 8)), "must be .T, C, H, W. or .B, T, C, H, W., got shape .2, 8, 8."),
        (lambda nda: nda.apply(torch.zeros(3, 1, 2, 8, 8), [Params()]), "3 samples need as many parameters, got 1"),
        (
            lambda nda: nda.apply(torch.zeros(1, 3, 8, 8), Params((HFlip(swap_polarity=True),))),
            "between 2 channels, frames have 3",
        ),
    ],
)
def test_frames_that_do_not_fit_are_named(call, message):
    with pytest.raises(FramesError, match=message):
        call(NDA())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_frames_but_at_a_few_edges():
    x = torch.randint(9, (16, 4, 2, 48, 48)).float()
    params = NDA("M3N3").sample_params(16, rng=np.random.default_rng(0))
    assert (transform(x.cuda(), params).cpu() != transform(x, params)).double().mean() < 1e-3


@pytest.mark.parametrize("scale", [0.5, 1.5, 100.0])
def test_scaling_counts_is_undone_by_the_first_normalisation(scale):
    # Why photometric augmentation does not help: shared/specs/snn-nda.md, section 2.
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-30)).double().train()
    x = frames_of(4, torch.float64)[:, 0]
    torch.testing.assert_close(layers(scale * x), layers(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("label", [3, np.int64(3), torch.tensor(3)])
def test_a_mapped_label_keeps_its_type_so_that_batches_can_be_made_of_it(label):
    augment = Augment(Policy(ops=(), num_ops=0, flip=1.0), {3: 7})
    _, mapped = augment((torch.zeros(2, 2, 4, 4), label), np.random.default_rng(0))
    assert (type(mapped), int(mapped)) == (type(label), 7)
    _, kept = augment((torch.zeros(2, 2, 4, 4), label * 0), np.random.default_rng(0))
    assert int(kept) == 0
