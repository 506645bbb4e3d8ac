"""Engines agree, and a federation does what its equations say."""

import copy

import numpy as np
import pytest
import torch
from federations import convolutional, double, federation, largest_difference, perceptron, scenario, student
from torch import nn

from fedcl import FedAvg, FedAvgM, FedYogi, LocalTraining, Scenario, Straggler, Trainer
from fedcl.client import Job
from fedcl.engine.local import LocalEngine
from fedcl.engine.programs import Rewritten, Vmapped, program
from fedcl.engine.stacked import StackedEngine

TRAINING = LocalTraining(4, lr=0.1, batch_size=8, momentum=0.5, weight_decay=0.01)


@pytest.mark.parametrize("make", [student, perceptron, convolutional])
@pytest.mark.parametrize("scope", ["task", "shared", "all"])
def test_stacked_is_serial(make, scope):
    states = [
        federation(FedYogi(0.1), make, engine=engine, training=TRAINING, scope=scope).finished_state()
        for engine in ("local", "stacked")
    ]
    assert largest_difference(*states) < 1e-5


@pytest.mark.parametrize("make", [student, perceptron, convolutional])
def test_stacked_is_serial_to_ten_digits_in_double_precision(make):
    data = scenario(dtype=np.float64, clients=4)
    states = [
        federation(FedAvg(), double(make), data, engine, TRAINING, straggler=Straggler(0.5, "partial")).finished_state()
        for engine in ("local", "stacked")
    ]
    assert states[0]["trained/task0"].dtype == torch.float64
    assert largest_difference(*states) < 1e-10


def test_complexity_is_descended_alike():
    training = LocalTraining(4, lr=0.1, batch_size=8, gamma_complexity=0.5)
    with_, without = (
        [federation(FedAvg(), engine=engine, training=t).finished_state() for engine in ("local", "stacked")]
        for t in (training, LocalTraining(4, lr=0.1, batch_size=8))
    )
    assert largest_difference(*with_) < 1e-5
    assert largest_difference(with_[0], without[0]) > 1e-3


@pytest.mark.parametrize(("make", "kind"), [(student, Rewritten), (perceptron, Rewritten), (convolutional, Vmapped)])
def test_networks_of_linear_layers_are_rewritten(make, kind):
    trainer = Trainer(scenario(), make, LocalTraining())
    assert type(program(trainer.models[3], trainer.layouts[3], 0.0)) is kind


def test_a_traced_program_gives_what_the_interpreted_one_does():
    trainer = Trainer(scenario(), convolutional, LocalTraining(30, batch_size=8, lr=0.05))
    jobs = [Job(client, 0, 0, 30) for client in range(3)]
    theta = trainer.initial[3]
    long, serial = (
        list(engine.train(jobs, lambda _: theta)) for engine in (StackedEngine(trainer), LocalEngine(trainer))
    )
    for one, other in zip(long, serial, strict=True):
        torch.testing.assert_close(one.update.trained, other.update.trained, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.update.averaged, other.update.averaged, rtol=0, atol=1e-5)
        assert one.update.counted.item() == other.update.counted.item() == 30


def test_stacks_are_cut_and_give_the_same():
    whole, cut = (StackedEngine(Trainer(scenario(5), student, TRAINING), max_stack=m) for m in (128, 2))
    jobs = [Job(client, client % 2, 1, 3) for client in range(5)]
    theta = whole.trainer.initial[3]
    replies = [{r.client: r.update.trained for r in engine.train(jobs, lambda _: theta)} for engine in (whole, cut)]
    assert largest_difference(*replies) < 1e-6


def test_one_client_with_server_rate_one_is_that_client():
    run = federation(FedAvg(), data=scenario(clients=1), rounds=1)
    theta = run.server.theta(int(run.scenario.orders[0, 0])).clone()
    job = Job(0, int(run.scenario.orders[0, 0]), 0, 4)
    alone = run.trainer.fit(job, theta)[0]
    run._round(0)
    torch.testing.assert_close(run.server.theta(job.task).trained, alone.trained, rtol=0, atol=1e-6)


def test_the_backbone_is_bit_identical_after_a_federation():
    run = federation(FedYogi(0.1))
    before = copy.deepcopy(run.trainer.models[3].backbone.state_dict())
    run.run()
    assert all(torch.equal(v, before[name]) for name, v in run.trainer.models[3].backbone.state_dict().items())


def test_gates_are_spared_by_weight_decay():
    training = LocalTraining(1, lr=0.1, batch_size=4, weight_decay=1000.0)
    trainer = Trainer(scenario(), student, training)
    layout, theta = trainer.layout(0), trainer.initial[3]
    update = layout.unflatten(trainer.train(Job(0, 0, 0, 1), theta).update)
    before = layout.unflatten(theta)
    assert update["scores.0"].abs().max() < 1
    torch.testing.assert_close(update["proxies.0.0.first"], -100 * before["proxies.0.0.first"], rtol=0.1, atol=1)


def test_every_image_is_seen_once_a_pass_and_short_data_give_short_batches():
    from fedcl.client import batch_indices

    rows = batch_indices(10, 4, Job(0, 0, 0, 5))
    assert rows.shape == (5, 4)
    seen = rows.flatten().tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert batch_indices(3, 8, Job(0, 0, 0, 2)).shape == (2, 3)
    assert not torch.equal(batch_indices(50, 8, Job(0, 0, 1, 2)), batch_indices(50, 8, Job(1, 0, 1, 2)))


def test_local_epochs_are_passes_over_what_a_client_has():
    training = LocalTraining(local_epochs=2, batch_size=8)
    assert training.steps(20) == 6
    assert training.steps(20, 0.5) == 3
    assert LocalTraining(10).steps(20, 0.01) == 1


def test_fedavg_of_quadratics_settles_beside_the_optimum():
    """Clients f_i = (h_i/2)(x - c_i)^2: with E steps the fixed point is a mean weighted by 1 - (1 - lr h_i)^E."""
    h, c, weights, lr, steps = np.array([1.0, 4.0, 9.0]), np.array([0.0, 1.0, -2.0]), np.array([1.0, 2.0, 1.0]), 0.05, 7
    x = {"x": torch.tensor([5.0], dtype=torch.float64)}
    optimizer = FedAvg()
    for _ in range(400):
        local = x["x"].repeat(3)
        for _ in range(steps):
            local = local - lr * torch.from_numpy(h) * (local - torch.from_numpy(c))
        delta = ((local - x["x"]) * torch.from_numpy(weights)).sum() / weights.sum()
        x = optimizer.step(x, {"x": delta[None]})
    pull = weights * (1 - (1 - lr * h) ** steps)
    assert x["x"].item() == pytest.approx((pull * c).sum() / pull.sum(), abs=1e-8)
    assert abs(x["x"].item() - (weights * h * c).sum() / (weights * h).sum()) > 0.1


def test_a_federation_of_linear_regressions_is_its_closed_form():
    """One full-batch step a round of softmax regression from zero: the server's update is the mean of the gradients."""
    x = np.random.default_rng(0).normal(size=(24, 3))
    y = np.arange(24) % 2
    data = Scenario.from_arrays(x, y, x_test=x, y_test=y, tasks=1, clients=3, seed=0)

    def make(classes):
        net = nn.Sequential(nn.Linear(3, classes, bias=False)).to(torch.float64)
        nn.init.zeros_(net[0].weight)
        return net

    run = federation(FedAvg(2.0), make, data, rounds=1, training=LocalTraining(1, lr=0.3, batch_size=24))
    run.run()
    # At zero the gradient of row k is the mean over a client's images of (1/2 - [y = k]) x.
    clients = [data.client(i, 0) for i in range(3)]
    gradients = [np.stack([((0.5 - (s.y == k))[:, None] * s.x).mean(0) for k in range(2)]) for s in clients]
    mean = np.average(gradients, axis=0, weights=[len(s) for s in clients])
    np.testing.assert_allclose(run.server.theta(0).trained.reshape(2, 3), -2.0 * 0.3 * mean, atol=1e-12)


def test_clients_in_another_order_give_the_same():
    def reversed_(jobs, theta_of):
        return reversed(list(LocalEngine(run.trainer).train(jobs, theta_of)))

    run = federation(FedAvgM(), scope="shared")
    run.engine = type("Reversed", (), {"train": staticmethod(reversed_)})()
    assert largest_difference(run.finished_state(), federation(FedAvgM(), scope="shared").finished_state()) < 1e-6


def test_settings_out_of_range_are_refused():
    from fedcl import ConfigError

    for settings, message in (
        ({"local_steps": 0}, "local_steps must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be above 0, got 0.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            LocalTraining(**settings)
    with pytest.raises(ConfigError, match="max_stack must be at least 1"):
        StackedEngine(Trainer(scenario(), student, TRAINING), max_stack=0)
