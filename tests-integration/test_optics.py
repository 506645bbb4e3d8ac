"""diffract's optics before a classifier that has only ever seen clear images."""

import numpy as np
import pytest
import torch
from torch import nn

import diffract
from core_utils.data import digits
from core_utils.training import Arrays, Loader, fit, seed_everything

TESTED = 200


@pytest.fixture(scope="module")
def design():
    """The miniature, trained for less than half as long."""
    return diffract.Design.preset("mini").with_(train__epochs=4)


@pytest.fixture(scope="module")
def objects():
    return diffract.load_objects()


def seen(intensity):
    """What the classifier gets: an image of mean 0 and deviation 1, so that brightness alone costs nothing."""
    images = np.asarray(intensity, np.float32)
    mean, deviation = images.mean((-2, -1), keepdims=True), images.std((-2, -1), keepdims=True)
    return torch.from_numpy((images - mean) / deviation)


@pytest.fixture(scope="module")
def classifier(design, objects):
    """Trained on the intensities of clear objects."""
    seed_everything(0)
    net = nn.Sequential(
        *(nn.Unflatten(1, (1, -1)), nn.AvgPool2d(4), nn.Flatten()),
        *(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    clear = diffract.placed(objects.train, design.grid, design.object_side) ** 2
    fit(
        net,
        lambda model, batch, _: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        Loader(Arrays(seen(clear), digits().y_train[: len(clear)]), 50),
        optimizer=torch.optim.Adam(net.parameters(), 2e-3),
        epochs=8,
        progress=False,
    )
    return net.eval()


@pytest.fixture(scope="module")
def accuracies(design, objects, classifier):
    """Of the same test digits: as they are, and behind one new diffuser each, through free space and the layers."""
    clear = diffract.placed(objects.test[:TESTED], design.grid, design.object_side)
    labels = torch.from_numpy(digits().y_test[:TESTED])
    (screen,) = design.screens
    diffusers = np.asarray(screen.sample(diffract.stream(design.seed, diffract.Stream.NEW), TESTED))
    trained = diffract.train(design, objects.train).network.resampled()
    imagers = {"free space": diffract.baselines.free_space(design.grid, design.planes), "network": trained}

    def right(intensity):
        with torch.inference_mode():
            return float((classifier(seen(intensity)).argmax(1) == labels).float().mean())

    def behind(imager):
        fields = np.asarray(imager.illuminated(clear)) * np.exp(1j * diffusers).astype(np.complex64)
        return imager(fields)

    return {"clear": right(clear**2), **{name: right(behind(imager)) for name, imager in imagers.items()}}


def test_the_labels_are_those_of_the_objects(objects):
    """diffract keeps images alone; they are scikit-learn's, in their order."""
    split = digits()
    assert np.array_equal(objects.train * 16, split.x_train[: len(objects.train)])
    assert np.array_equal(objects.test * 16, split.x_test)


def test_a_diffuser_costs_accuracy_and_trained_layers_give_some_of_it_back(accuracies):
    assert accuracies["clear"] > 0.8
    assert accuracies["network"] < accuracies["clear"] - 0.1
    assert accuracies["network"] > accuracies["free space"] + 0.3
