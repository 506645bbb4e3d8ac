"""Three packages' jobs on one Dask cluster: the same bits as in one process."""

import io

import distributed
import pytest
from PIL import Image

import imagenet_s
import jethr2
import snasnet
from core_utils.data import fashion_mnist_small


class Finished(distributed.SchedulerPlugin):
    """Keeps the names of the tasks that workers of the cluster have finished."""

    def __init__(self):
        self.names = []

    def transition(self, key, _, finish, *__, **___):
        if finish == "memory":
            self.names.append(str(key))


@pytest.fixture(scope="module")
def cluster():
    """A scheduler's address and the names of its finished tasks; two workers, processes of their own."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as made:
        finished = Finished()
        made.scheduler.add_plugin(finished)
        yield made.scheduler_address, finished.names


def on_both(cluster, work):
    """What work gives in one process and on the cluster, and the tasks that this left there."""
    address, names = cluster
    before = len(names)
    alone, together = work({}), work({"cluster": address})
    return alone, together, names[before:]


def test_take_offs_are_the_same_to_the_bit(cluster):
    def fly(where):
        study = jethr2.monte_carlo(6, ("none", "full"), duration=0.6, nthread=1, chunk=3, **where)
        return {
            case: {name: figure.tobytes() for name, figure in vars(metrics).items()}
            for case, metrics in study.metrics.items()
        }

    alone, together, tasks = on_both(cluster, fly)
    assert alone == together
    assert alone["none"] != alone["full"]
    assert len(tasks) == 4  # two chunks of two modes


def test_cells_are_ranked_alike_with_equal_scores(cluster):
    data = snasnet.load_data("digits")
    batch, options = data.batch(16, seed=0), {"width": 4, "hidden": 8, "T": 2}

    def search(where):
        space = snasnet.SearchSpace("backward")
        found = snasnet.search(space, data.spec, batch, n=8, options=options, progress=False, **where)
        return [{name: value for name, value in row.items() if name != "seconds"} for row in found.table]

    alone, together, tasks = on_both(cluster, search)
    assert alone == together
    assert len({row["score"] for row in alone}) > 1
    assert len(tasks) == len(alone)


def test_shards_of_views_hold_the_same_bytes(cluster, tmp_path):
    split = fashion_mnist_small()
    samples = [(jpeg(image), int(label)) for image, label in zip(split.x_test[:12], split.y_test, strict=False)]
    grid = imagenet_s.Grid(("pillow", "opencv"), ("pillow-bilinear", "opencv-area"), imagenet_s.Pipeline(size=28))

    def generate(where):
        out = tmp_path / ("cluster" if where else "alone")
        made = imagenet_s.generate(samples, grid, out, shard_size=4, **where)
        assert (made.images, len(made.shards)) == (12, 3)
        return {file.relative_to(out): file.read_bytes() for file in out.rglob("*") if file.is_file()}

    alone, together, tasks = on_both(cluster, generate)
    assert alone == together
    assert len([file for file in alone if file.suffix == ".tar"]) == len(tasks) == 3


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(image).resize((60, 48)).save(file, "JPEG", quality=90)
    return file.getvalue()
