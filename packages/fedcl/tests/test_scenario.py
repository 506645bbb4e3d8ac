"""Tasks, orders and parts: complete, disjoint, from the seed alone; what cannot be had is refused at once."""

import numpy as np
import pytest
from federations import blobs, scenario
from hypothesis import given
from hypothesis import strategies as st

from fedcl import IID, Dirichlet, Scenario, ScenarioError


def is_a_partition(parts, count):
    return sorted(np.concatenate(parts).tolist()) == list(range(count))


@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=80),
    clients=st.integers(1, 6),
    alpha=st.one_of(st.none(), st.floats(1e-4, 1e3)),
    least=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_parts_are_disjoint_complete_large_enough_and_stable(labels, clients, alpha, least, seed):
    deal = IID() if alpha is None else Dirichlet(alpha, least)
    labels = np.array(labels)
    parts, again = (deal(labels, clients, np.random.default_rng(seed)) for _ in range(2))
    assert is_a_partition(parts, len(labels))
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))
    if alpha is not None:
        assert min(map(len, parts)) >= least
    else:
        counts = np.array([np.bincount(labels[part], minlength=5) for part in parts])
        assert (counts.max(0) - counts.min(0)).max() <= 1


def test_a_large_alpha_deals_evenly_and_a_small_one_does_not():
    labels = np.repeat(np.arange(3), 4000)
    even = Dirichlet(1e6)(labels, 10, np.random.default_rng(0))
    counts = np.array([np.bincount(labels[part], minlength=3) for part in even])
    # Chi-square of 27 independent cells: the 99.9 % point is 55.5.
    assert ((counts - 400) ** 2 / 400).sum() < 55.5
    skewed = Dirichlet(0.05)(labels, 10, np.random.default_rng(0))
    assert max(np.bincount(labels[part], minlength=3).max() / len(part) for part in skewed if len(part)) > 0.99


def test_labels_are_positions_in_the_sorted_classes_of_a_task():
    made = scenario(tasks=[[4, 1], [5, 0, 2]], allow_uneven=True)
    assert made.tasks == ((1, 4), (0, 2, 5))
    for task, classes in enumerate(made.tasks):
        held = np.concatenate([made.parts[client][task] for client in range(3)])
        assert set(made.y[held]) == set(classes)
        subset = made.client(0, task)
        assert (np.array(classes)[subset.y] == made.y[made.parts[0][task]]).all()
        assert len(made.joint(task)) == len(held) == 24 * len(classes)
        assert set(made.test(task).y) == set(range(len(classes)))
    assert made.counts().shape == (3, 2, 3)
    assert (made.counts()[:, 0].sum(0) == [24, 24, 0]).all()


def test_orders_are_of_each_client_or_of_all():
    own, same = scenario(clients=40, tasks=3), scenario(clients=40, tasks=3, order="same")
    assert (np.sort(own.orders, 1) == [0, 1, 2]).all()
    assert len(np.unique(own.orders, axis=0)) == 6
    assert len(np.unique(same.orders, axis=0)) == 1
    given_ = np.array([[1, 0], [0, 1], [1, 0]])
    assert (scenario(order=given_).orders == given_).all()


def test_a_seed_decides_everything_and_each_stream_is_its_own():
    assert scenario(seed=3).digest() == scenario(seed=3).digest() != scenario(seed=4).digest()
    # Another order leaves classes of tasks and parts alone.
    assert scenario(order="same").tasks == scenario(order="random").tasks
    assert (scenario(order="same").parts[1][0] == scenario(order="random").parts[1][0]).all()


def test_bytes_are_normalised_by_channel():
    x = np.full((8, 3, 2, 2), 51, np.uint8)
    made = Scenario.from_arrays(
        x,
        np.arange(8) % 2,
        x_test=x,
        y_test=np.arange(8) % 2,
        tasks=1,
        clients=1,
        normal=((0.1, 0.2, 0.0), (0.1, 0.5, 1.0)),
    )
    image = made.client(0, 0).x[0]
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[:, 0, 0], [1.0, 0.0, 0.2], atol=1e-6)


def test_a_saved_scenario_is_the_same_and_a_damaged_one_is_named(tmp_path):
    made = scenario(partition=Dirichlet(0.3), per_client=9)
    made.save(tmp_path)
    assert Scenario.load(tmp_path).digest() == made.digest()
    assert max(len(part) for row in made.parts for part in row) == 9
    scenario(seed=1, partition=Dirichlet(0.3), per_client=9).save(tmp_path / "other")
    (tmp_path / "scenario.json").write_text((tmp_path / "other/scenario.json").read_text())
    with pytest.raises(ScenarioError, match=r"do not belong together|cannot be read"):
        Scenario.load(tmp_path)
    with pytest.raises(ScenarioError, match=r"none/scenario.json or its arrays cannot be read"):
        Scenario.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": 4}, "6 classes cannot be split into 4 equal tasks"),
        ({"tasks": 4, "classes_per_task": 2}, "4 tasks of 2 classes need more than the data's 6"),
        ({"tasks": 7}, "7 tasks of 1 classes need more than the data's 6"),
        ({"tasks": [[0, 1], [1, 2]]}, "tasks must be disjoint"),
        ({"tasks": [[0, 1], [2]]}, r"tasks have \[1, 2\] classes"),
        ({"clients": 0}, "clients must be at least 1, got 0"),
        ({"order": np.zeros((2, 2), int)}, r"order must have shape \[3, 2\], got \[2, 2\]"),
        ({"order": np.array([[0, 1], [0, 0], [1, 0]])}, r"order row 1 is no permutation of 0 to 1: \[0, 0\]"),
        ({"partition": Dirichlet(0.5, 30)}, "3 clients with at least 30 images each need more than a task's 72"),
        ({"clients": 100}, "100 clients with at least 1 images each need more than a task's 72"),
        ({"per_client": 0}, "per_client must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_had_is_refused(options, message):
    with pytest.raises(ScenarioError, match=message):
        scenario(**options)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_a_number_above_zero(alpha):
    with pytest.raises(ScenarioError, match="alpha must be a finite number above 0"):
        Dirichlet(alpha)


def test_bad_arrays_are_named():
    x, y = blobs()

    def made(x=x, y=y, x_test=x, y_test=y):
        return Scenario.from_arrays(x, y, x_test=x_test, y_test=y_test, tasks=2, clients=2)

    broken = x.copy()
    broken[7, 2] = np.nan
    for options, message in (
        ({"x": broken}, "training image 7 has values that are not finite"),
        ({"y": y.astype(float)}, "training labels must be integers"),
        ({"y": y - 1}, "training labels must not be negative, got -1 at 0"),
        ({"y": y[:-1]}, "144 training images have 143 labels"),
        ({"x": x.astype(np.int32)}, "training images must be uint8 or floating point, got int32"),
        ({"x_test": x[:, :4]}, r"test images are float32 of shape \[144, 4\]"),
        ({"y_test": np.minimum(y, 4)}, "class 5 has no test images"),
    ):
        with pytest.raises(ScenarioError, match=message):
            made(**options)
