"""Models of other papers as fedcl's clients: Flower's nodes and one process after the other learn the same."""

import pytest
import torch
from torch import nn

import dynsparse
import fedcl
import snn_tet
from fedcl.miniature import miniature_scenario

# flwr 1.42 imports typer 0.20, which imports names that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:'click\.utils\.\w+' is deprecated and will be removed:DeprecationWarning:typer"
)


def sparse(classes):
    """Two convolutions, of which the second mixes four masked kernels for each image."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)),
    )
    return dynsparse.convert(net)


class Spiking(nn.Module):
    """snn-tet's network for batches [B, T, ...]; its class scores are the mean over time."""

    def __init__(self, classes):
        super().__init__()
        self.net = snn_tet.tiny_vgg(2, classes, widths=(4, 8))

    def forward(self, frames):
        return self.net(snn_tet.sequence(frames)).mean(0)


def garments():
    return miniature_scenario(0, tasks=2, clients=3, per_client=32)


def recordings():
    split = snn_tet.posed_miniature(0, train_per_class=8, test_per_class=4, time_steps=3)
    arrays = {"x_test": split.x_test, "y_test": split.y_test}
    return fedcl.Scenario.from_arrays(split.x_train, split.y_train, **arrays, tasks=2, clients=2)


@pytest.mark.parametrize(("make", "data"), [(sparse, garments), (Spiking, recordings)])
def test_flowers_nodes_and_local_clients_learn_the_same_tensors(make, data):
    scenario = data()
    states, results = {}, {}
    for engine in ("local", "flwr"):
        federation = fedcl.FederatedRun(
            scenario,
            make,
            fedcl.FedYogi(0.03),
            engine=engine,
            training=fedcl.LocalTraining(3, batch_size=8, lr=0.05),
            protocol=fedcl.Protocol(scope="shared", rounds=2),
        )
        start = {name: value.clone() for name, value in federation.server.state().items()}
        results[engine] = federation.run()
        states[engine] = federation.server.state()
    assert states["local"].keys() == states["flwr"].keys()
    trained = [name for name in states["local"] if name.startswith("trained/")]
    assert len(trained) == 1 + scenario.num_tasks  # one shared body, a head a task
    for name, value in states["local"].items():
        torch.testing.assert_close(states["flwr"][name], value, rtol=0, atol=1e-6)
    assert all((states["local"][name] - start[name]).abs().max() > 1e-3 for name in trained)
    local, flower = (results[engine] for engine in ("local", "flwr"))
    assert (local.accuracy == flower.accuracy).all()
    clients = list(range(scenario.num_clients))
    assert [record.accepted for record in flower.history] == [clients] * 4  # two phases of two rounds
