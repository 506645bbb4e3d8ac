import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from core_utils.errors import CheckFailed, UserError  # noqa: E402
from core_utils.runs import Run  # noqa: E402
from core_utils.training import Arrays, Loader, cosine, decode, encode, fit, resolve_device, seed_everything  # noqa: E402

CONFIG = {"seed": 0}
EPOCHS, PER_EPOCH = 3, 4
TOTAL = EPOCHS * PER_EPOCH


class Counter:
    """A state object with a tensor and a number of its own."""

    def __init__(self):
        self.calls, self.trace = 0, torch.zeros(2)

    def state_dict(self):
        return {"calls": self.calls, "trace": self.trace}

    def load_state_dict(self, state_dict):
        self.calls, self.trace = state_dict["calls"], state_dict["trace"]

    def __call__(self, model, step):
        self.calls += 1
        self.trace = 0.5 * self.trace + step


class KilledError(Exception):
    pass


def jitter(item, rng):
    x, y = item
    return x + 0.1 * torch.from_numpy(rng.normal(size=x.shape).astype(np.float32)), y


def squared(model, batch, step):
    x, y = batch
    return torch.nn.functional.mse_loss(model(x), y)


def data(count=30):
    x = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    return Arrays(x, x[:, :2] ** 2)


def loader(**more):
    return Loader(data(), 8, seed=4, transform=jitter, **more)


def network():
    """Dropout draws from the random state; batch norm has buffers."""
    seed_everything(3)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)
    )


def train(run=None, stop_after=None, load=None, **more):
    """A whole fit, or one that a Ctrl-C reaches after a step; gives the model, the counter and the history."""
    model, counter = network(), Counter()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def after(model, step):
        counter(model, step)
        if step + 1 == stop_after:
            os.kill(os.getpid(), 2)

    history = fit(
        model, squared, load or loader(), optimizer=optimizer, schedule=cosine, epochs=EPOCHS, after_step=after,
        evaluate=lambda model: {"norm": sum(p.norm() for p in model.parameters())}, state={"counter": counter}, run=run, clip=1.0,
        progress=False, **more,
    )  # fmt: skip
    return model, counter, history


def bits(model, counter, history):
    tensors = {}
    facts = encode(
        {"model": model.state_dict(), "counter": counter.state_dict(), "records": list(history.records)}, tensors, ""
    )
    return json.dumps(facts), {name: array.tobytes() for name, array in tensors.items()}


@pytest.fixture(scope="module")
def uninterrupted():
    return bits(*train())


@pytest.mark.parametrize("stop_after", [1, 2, 4, 7, 8, TOTAL - 1])
def test_a_fit_interrupted_after_any_step_ends_bit_identical(tmp_path, uninterrupted, stop_after):
    with Run.open(tmp_path, CONFIG) as run, pytest.raises(KeyboardInterrupt):
        train(run, stop_after=stop_after)
    with Run.open(tmp_path, CONFIG, resume=True) as run:
        assert bits(*train(run)) == uninterrupted
        assert [record["step"] for record in run.records()] == [4, 8, 12]


def test_a_fit_interrupted_after_every_step_ends_bit_identical(tmp_path, uninterrupted):
    for stop_after in range(1, TOTAL):
        with Run.open(tmp_path, CONFIG, resume=True) as run, pytest.raises(KeyboardInterrupt):
            train(run, stop_after=stop_after)
    with Run.open(tmp_path, CONFIG, resume=True) as run:
        assert bits(*train(run)) == uninterrupted
        assert bits(*train(run)) == uninterrupted  # a finished stage is returned, not trained further


def test_a_fit_that_was_killed_goes_on_from_the_last_epoch(tmp_path, uninterrupted):
    def die(model, step):
        if step == 6:
            raise KilledError

    with Run.open(tmp_path, CONFIG) as run, pytest.raises(KilledError):
        train(run, before_step=die)
    with Run.open(tmp_path, CONFIG, resume=True) as run:
        assert run.load_state("fit")[1]["position"]["step"] == 4
        assert bits(*train(run)) == uninterrupted
        assert len(list(run.records())) == EPOCHS


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores, on purpose
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_loading_workers_changes_nothing(uninterrupted, workers):
    assert bits(*train(load=loader(workers=workers))) == uninterrupted


def test_the_loss_is_that_of_plain_pytorch():
    """The loop written out, without dropout and transform, gives the same parameters."""
    ours, plain = torch.nn.Linear(5, 2), torch.nn.Linear(5, 2)
    plain.load_state_dict(ours.state_dict())
    batches = Loader(data(), 8, seed=1)
    fit(
        ours,
        squared,
        batches,
        optimizer=torch.optim.SGD(ours.parameters(), lr=0.1),
        schedule=cosine,
        steps=6,
        progress=False,
    )
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(6):
        x, y = list(batches.batches(step // 4))[step % 4]
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 6))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(plain(x), y).backward()
        optimizer.step()
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)


def test_stages_of_one_run_are_kept_apart(tmp_path):
    with Run.open(tmp_path, CONFIG) as run:
        train(run, stage="first")
        train(run, stage="second")
        assert sorted({record["stage"] for record in run.records()}) == ["first", "second"]
        assert run.load_state("first")[1]["position"]["step"] == TOTAL


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_state(tmp_path):
    def explode(model, batch, step):
        return squared(model, batch, step) * (float("nan") if step == 6 else 1.0)

    model = network()
    with Run.open(tmp_path, CONFIG) as run:
        optimizer = torch.optim.Adam(model.parameters())
        with pytest.raises(
            CheckFailed, match=r"loss became nan at step 6 \(epoch 1, batch 2\); the last good state is in"
        ):
            fit(model, explode, loader(), optimizer=optimizer, epochs=EPOCHS, run=run, progress=False)
        tensors, facts = run.load_state("fit")
        assert facts["position"]["step"] == 4
        assert all(np.isfinite(array).all() for name, array in tensors.items() if name.startswith("model/"))


def test_parameters_that_are_not_finite_never_become_a_state(tmp_path):
    def poison(model, step):
        if step == 3:
            with torch.no_grad():
                next(iter(model.parameters())).fill_(torch.inf)

    model = network()
    with Run.open(tmp_path, CONFIG) as run:
        with pytest.raises(CheckFailed, match=r"0\.weight is not finite after step 3"):
            fit(
                model,
                squared,
                loader(),
                optimizer=torch.optim.SGD(model.parameters()),
                epochs=2,
                after_step=poison,
                run=run,
                progress=False,
            )
        assert run.load_state("fit")[1]["position"]["step"] == 0


@pytest.mark.parametrize(
    ("length", "complaint"),
    [({}, "either epochs or steps"), ({"epochs": 1, "steps": 1}, "either"), ({"steps": 0}, "at least one")],
)
def test_the_length_of_a_fit_must_be_clear(length, complaint):
    model = network()
    with pytest.raises(UserError, match=complaint):
        fit(model, squared, loader(), optimizer=torch.optim.SGD(model.parameters()), **length)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "quantum", "cpu:x"])
def test_a_device_that_is_not_there_is_named(device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=f"--device {device}"):
        resolve_device(device)


def test_auto_takes_what_there_is():
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_processes_share_what_one_process_sees(count, batch_size, world_size, drop_last, epoch):
    items = Arrays(np.arange(count))
    try:
        together = Loader(items, batch_size * world_size, seed=2, drop_last=drop_last)
        apart = Loader(items, batch_size, seed=2, drop_last=drop_last)
    except UserError:
        return
    whole = [batch[0].tolist() for batch in together.batches(epoch)]
    shares = [
        [batch[0].tolist() for batch in apart.batches(epoch, rank=rank, world_size=world_size)]
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {apart.steps(world_size)}
    for index, parts in enumerate(zip(*shares, strict=True)):
        assert len({len(part) for part in parts}) == 1
        flat = [item for part in parts for item in part]
        assert flat == whole[index][: len(flat)]
        assert len(whole[index]) - len(flat) < world_size


def test_the_order_is_a_new_permutation_every_epoch():
    orders = [Loader(data(), 8, seed=1).order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert Loader(data(), 8, seed=1, shuffle=False).order(1).tolist() == list(range(30))


@pytest.mark.parametrize(
    ("count", "size", "drop", "complaint"),
    [(0, 1, False, "empty"), (3, 0, False, "at least 1"), (3, 4, True, "exceeds the 3 items")],
)
def test_a_loader_without_batches_is_refused(count, size, drop, complaint):
    with pytest.raises(UserError, match=complaint):
        Loader(Arrays(np.zeros(count)), size, drop_last=drop)


states = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 5) | st.text(max_size=2), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@given(states)
def test_plain_state_comes_back_through_json(value):
    facts = json.loads(json.dumps(encode(value, {}, ""), allow_nan=False))
    assert repr(decode(facts, {})) == repr(value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_come_back_bit_for_bit(dtype, shape):
    tensor, tensors = (torch.rand(shape) * 3).to(dtype), {}
    tensor = tensor.permute(tuple(reversed(range(tensor.ndim))))
    back = decode(encode({"a": [tensor]}, tensors, "x"), tensors)["a"][0]
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_a_state_that_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match="model/0 holds a object"):
        encode([object()], {}, "model")


DDP = textwrap.dedent("""
    import sys
    import numpy as np
    import torch
    from core_utils.runs import Run
    from core_utils.training import Arrays, Loader, fit, world_size

    world, folder = int(sys.argv[1]), sys.argv[2]

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
            self.shift = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x, shifted):  # the shift gets a gradient in every other step only
            return self.layers(x) + self.shift if shifted else self.layers(x)

    torch.manual_seed(0)
    model = Net()
    assert world_size() == world
    x = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    loader = Loader(Arrays(x, x[:, :2] ** 2), 8 // world, seed=4)
    loss = lambda model, batch, step: torch.nn.functional.mse_loss(model(batch[0], step % 2 == 0), batch[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Run.open(folder, {"seed": 0}, resume=True) as run:
        history = fit(
            model, loss, loader, optimizer=optimizer, epochs=3, run=run, unused_parameters=True, progress=False
        )
    print(history.last["loss"])
""")


def test_two_gloo_processes_give_one_processs_parameters(tmp_path):
    """Under torchrun, half the batch in each of two processes equals the whole batch in one, to 1e-5."""
    (tmp_path / "ddp.py").write_text(DDP)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--local-addr=127.0.0.1",
    ]
    for world, launcher in ((1, [sys.executable]), (2, torchrun)):
        command = [*launcher, str(tmp_path / "ddp.py"), str(world), str(tmp_path / str(world))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (Run.open(tmp_path / world, {"seed": 0}, resume=True) for world in ("1", "2"))
    with one, two:
        (alone, _), (together, _) = one.load_state("fit"), two.load_state("fit")
        weights = [name for name in alone if name.startswith("model/")]
        assert len(weights) == 5
        for name in weights:
            np.testing.assert_allclose(together[name], alone[name], atol=1e-5)
        losses = [[record["loss"] for record in run.records()] for run in (one, two)]
        np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
        assert len(losses[1]) == 3


def test_a_classifier_is_evaluated_sample_by_sample_and_left_in_its_mode():
    from core_utils.training import evaluate_classifier

    class Shifted(torch.nn.Module):
        def forward(self, x):
            return x + 10 if self.training else x

    model, logits = Shifted(), torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    labels = torch.tensor([0, 1, 1])
    found = evaluate_classifier(model, [(logits[:2], labels[:2]), (logits[2:], labels[2:])])
    expected = torch.log1p(torch.tensor([-2.0, -1.0, 0.5]).exp()).mean().item()
    assert found == {"accuracy": pytest.approx(2 / 3), "loss": pytest.approx(expected, rel=1e-6)}
    assert model.training
    turned = evaluate_classifier(model.eval(), [(logits, labels)], lambda samples: -model(samples))
    assert (turned["accuracy"], model.training) == (pytest.approx(1 / 3), False)
    with pytest.raises(UserError, match="nothing to evaluate on"):
        evaluate_classifier(model, [])
