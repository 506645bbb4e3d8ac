"""Other libraries' data sets, by what they yield, and events as frames."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recordings import recording

from core_utils.spiking.events import EVENT, events_to_frames, resize_frames
from snn_nda.adapters import EventFrames, ForeignEvents, as_sample
from snn_nda.errors import EventsError
from snn_nda.events import EventNDA
from snn_nda.nda import NDA

TONIC = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])


def in_tonics_order(events):
    foreign = np.empty(len(events), TONIC)
    for name in TONIC.names:
        foreign[name] = events[name]
    return foreign


class Foreign(list):
    """A data set as other libraries make them."""

    def __init__(self, items, **facts):
        super().__init__(items)
        vars(self).update(facts)


def test_tonics_fields_sizes_and_names_of_classes_are_read_by_name():
    events = [recording(seed=seed) for seed in range(3)]
    labels = ["zebra", "ant", "zebra"]
    dataset = Foreign(
        [(in_tonics_order(each), label) for each, label in zip(events, labels, strict=True)],
        sensor_size=(34, 34, 2),
        targets=labels,
    )
    ours = ForeignEvents(dataset=dataset, label_safe_flip=True)
    assert (len(ours), ours.sensor_size, ours.classes) == (3, (34, 34), ("ant", "zebra"))
    assert [label for _, label in (ours[0], ours[1], ours[2])] == [1, 0, 1]
    for mine, theirs in zip(events, (ours[i][0] for i in range(3)), strict=True):
        assert theirs.dtype == EVENT
        np.testing.assert_array_equal(mine, theirs)


def test_spikingjellys_mappings_are_read():
    events = recording()
    sample = {name: events[name].astype(np.float64 if name == "t" else np.int64) for name in "txyp"}
    ours = ForeignEvents(dataset=Foreign([(sample, np.int64(4))]), sensor_size=(34, 34))
    np.testing.assert_array_equal(ours[0][0], events)
    assert ours[0][1] == 4


def test_a_numpy_archive_is_read(tmp_path):
    events = recording()
    np.savez(tmp_path / "0.npz", **{name: events[name] for name in "txyp"})
    with np.load(tmp_path / "0.npz") as archive:
        np.testing.assert_array_equal(as_sample(archive), events)


@pytest.mark.parametrize("frames", [np.ones((5, 2, 8, 8), np.int16), torch.ones(5, 2, 8, 8)])
def test_frames_stay_frames(frames):
    sample, label = ForeignEvents(dataset=Foreign([(frames, 1)]))[0]
    assert sample.shape == (5, 2, 8, 8)
    assert label == 1
    resized, _ = EventFrames(dataset=ForeignEvents(dataset=Foreign([(frames, 1)])), size=4)[0]
    assert resized.dtype == np.float32
    assert (resized == 4).all()  # the sum of two by two pixels


def test_signed_polarities_are_read_when_asked():
    events = recording()
    signed = events.copy()
    signed["p"] = 2 * events["p"] - 1
    np.testing.assert_array_equal(as_sample(signed, signed=True), events)
    with pytest.raises(EventsError, match=r"polarity -1, not 0 or 1 .signed=True reads"):
        as_sample(signed)


def test_events_become_the_frames_of_core_utils():
    events = recording(200)
    dataset = Foreign([(events, 3)], sensor_size=(34, 34), label_safe_flip=False, label_map={3: 4})
    frames = EventFrames(dataset=dataset, time_steps=4, size=34)
    np.testing.assert_array_equal(frames[0][0], events_to_frames(events, 4, (34, 34), "number"))
    assert (frames.label_safe_flip, frames.label_map, len(frames)) == (False, {3: 4}, 1)
    small = EventFrames(dataset=dataset, time_steps=4, size=17)
    assert small[0][0].sum() == 200
    assert EventFrames(dataset=dataset, time_steps=4, size=17, method="nearest")[0][0].sum() < 100


def test_nearest_resizing_gives_the_sum_of_the_spec():
    # shared/specs/snn-nda.md, section 10: 12 x 10 to 6 x 5 of x.flat[k] = 31 k mod 7, shape [4, 2, 12, 10].
    probe = (31 * np.arange(4 * 2 * 12 * 10) % 7).reshape(4, 2, 12, 10)
    assert resize_frames(probe, (6, 5), "nearest").sum() == 723


def test_a_data_set_of_tonic_is_taken_with_our_transforms_in_its_own_compose():
    tonic = pytest.importorskip("tonic")
    events = [recording(seed=seed) for seed in range(3)]

    class Mine(tonic.Dataset):
        sensor_size = (34, 34, 2)

        def __init__(self, transform=None):
            super().__init__("nowhere", transform=transform)
            self.data, self.targets = [in_tonics_order(each) for each in events], ["b", "a", "b"]

        def __len__(self):
            return 3

        def __getitem__(self, index):
            sample = self.data[index] if self.transform is None else self.transform(self.data[index])
            return sample, self.targets[index]

        def _check_exists(self):
            return True

    np.testing.assert_array_equal(ForeignEvents(dataset=Mine())[0][0], events[0])
    assert ForeignEvents(dataset=Mine())[0][1] == 1
    nda = EventNDA("M1N2", sensor_size=(34, 34), rng=0)
    moved = nda.apply(events[0], EventNDA("M1N2", rng=0).sample_params((34, 34)), (34, 34))
    compose = tonic.transforms.Compose([nda, tonic.transforms.ToFrame((34, 34, 2), n_time_bins=4), NDA("none")])
    frames, label = ForeignEvents(dataset=Mine(compose))[0]
    assert (frames.shape, frames.dtype, label) == ((4, 2, 34, 34), np.int16, 1)
    assert abs(int(frames.sum()) - len(moved)) <= 1  # tonic's bins leave out what rounding leaves of the time


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.zeros(3, [("x", "i2"), ("y", "i2"), ("t", "i8")]), "has the fields x, y, t but no 'p'"),
        ({"t": [], "x": [], "y": []}, "no 'p'"),
        (np.zeros((3, 4)), r"neither events nor frames but ndarray of shape \[3, 4\]"),
        (SimpleNamespace(), "neither events nor frames but SimpleNamespace"),
        (None, "neither events nor frames but NoneType"),
    ],
)
def test_samples_that_are_neither_events_nor_frames_are_named(sample, message):
    with pytest.raises(EventsError, match=message):
        as_sample(sample)


def test_unknown_labels_and_sensors_are_named():
    dataset = Foreign([(recording(), "gnu")])
    with pytest.raises(EventsError, match="label 'gnu' is not among the classes None"):
        ForeignEvents(dataset=dataset)[0]
    with pytest.raises(EventsError, match="the sensor of ForeignEvents is unknown"):
        EventFrames(dataset=ForeignEvents(dataset=dataset, classes=("gnu",)))[0]
