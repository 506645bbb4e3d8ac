"""Small federations for tests."""

import numpy as np
import torch
from torch import nn

from fedcl import LocalTraining, Protocol, Scenario, mlp_backbone, tailor
from fedcl.federation import FederatedRun


def blobs(classes=6, per_class=24, size=5, seed=0):
    """Points around one centre a class: float32 [n, size]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, size)) * 2
    y = np.repeat(np.arange(classes), per_class)
    return (centres[y] + rng.normal(size=(len(y), size))).astype(np.float32), y


def scenario(clients=3, tasks=2, seed=0, dtype=np.float32, **options):
    x, y = blobs()
    test, truth = blobs(per_class=10, seed=1)
    return Scenario.from_arrays(
        x.astype(dtype), y, x_test=test.astype(dtype), y_test=truth, tasks=tasks, clients=clients, seed=seed, **options
    )


def student(classes):
    return tailor(mlp_backbone(5, 6, 2), num_classes=classes, max_skip=2, input_shape=(5,), hidden=3)


def perceptron(classes):
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, classes))


def convolutional(classes):
    """Frozen stem, trained blocks with normalisation; images [B, 5] as [B, 1, 5, 1]."""

    class Net(nn.Module):
        head = "classifier"

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
            self.classifier = nn.Linear(20, classes)

        def forward(self, x):
            return self.classifier(self.body(x[:, None, :, None]).flatten(1))

    return Net()


def federation(optimizer, model=student, data=None, engine="local", training=None, trainer=None, **protocol):
    protocol = {"rounds": 2, **protocol}
    return FederatedRun(
        data or scenario(),
        model,
        optimizer,
        engine=engine,
        training=training or LocalTraining(4, lr=0.1, batch_size=8),
        protocol=Protocol(**protocol),
        trainer=trainer,
    )


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one if one[key].numel())


class Scripted:
    """An engine that lets a script change the replies of another one."""

    def __init__(self, engine, script):
        self.engine, self.script = engine, script

    def train(self, jobs, theta_of):
        for reply in self.engine.train(jobs, theta_of):
            yield from self.script(reply)


def double(make):
    return lambda classes: make(classes).to(torch.float64)
