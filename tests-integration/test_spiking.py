"""snn-nda's augmentation, snn-tet's loss and snasnet's cell in one training: eight ways, none of them written for it."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

import snasnet
import snn_nda
import snn_tet
from core_utils.runs import Run
from core_utils.training import Arrays, Loader, seed_everything

SWITCHES = ("augmentation", "tet_loss", "cell")
ARMS = [dict(zip(SWITCHES, on, strict=True)) for on in itertools.product((False, True), repeat=3)]
TIME_STEPS, SIZE, EPOCHS, BATCH = 4, 24, 2, 20
CELL = "0302 0030 3003 0000"  # two of its edges carry feedback


class EveryStep(nn.Module):
    """A cell's network as snn-tet wants it: the class scores of every step instead of their mean."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, frames):
        return self.net.forward_sequence(frames)


def network(*, cell):
    seed_everything(0)
    if not cell:
        return snn_tet.tiny_vgg(2, 10, widths=(4, 8), size=SIZE)
    return EveryStep(snasnet.SNASNet(CELL, snasnet.DatasetSpec(2, SIZE, 10), width=4, head="gap"))


@pytest.fixture(scope="module")
def recordings():
    return snn_nda.posed_miniature(0, train_per_class=4, test_per_class=4, time_steps=TIME_STEPS)


@pytest.fixture(scope="module")
def folders(recordings, tmp_path_factory):
    """A finished run of each arm by its name."""
    made = {}
    for arm in ARMS:
        folder = tmp_path_factory.mktemp("arms") / "-".join(name if on else f"no_{name}" for name, on in arm.items())
        with Run.open(folder, arm) as run:
            run.finish(trained(arm, recordings, run))
        made[folder.name] = folder
    return made


def trained(arm, recordings, run):
    """One arm's figures after a few steps; data, order and initial weights are the same in all arms."""
    model = network(cell=arm["cell"])
    augment = snn_nda.Augment(snn_nda.policy("paper")) if arm["augmentation"] else None
    train = Loader(Arrays(recordings.x_train, recordings.y_train), BATCH, transform=augment)
    test = Loader(Arrays(recordings.x_test, recordings.y_test), BATCH, shuffle=False)
    loss = "tet" if arm["tet_loss"] else "sdt"
    config = snn_tet.TrainConfig(loss=loss, time_steps=TIME_STEPS, epochs=EPOCHS, batch_size=BATCH)
    before = [value.clone() for value in model.parameters()]
    history = snn_tet.train(model, snn_tet.Loaders(train), config, run=run, progress=False)
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    accuracy = snn_tet.accuracy_vs_steps(model, test, TIME_STEPS)["prefix"][-1]
    figures = {"loss": history.last["loss"], "accuracy": accuracy, "steps": history.last["step"]}
    return {**arm, **figures, "all_moved": all(moved)}


def test_each_way_leaves_a_run_folder_of_its_own(folders):
    assert len(folders) == 8
    for arm, folder in zip(ARMS, folders.values(), strict=True):
        with Run.open(folder, arm) as run:  # another configuration would be refused
            assert run.finished
            records = list(run.records())
        assert [record["step"] for record in records] == [2, 4]
        assert all(math.isfinite(record["loss"]) for record in records)
        assert list((folder / "checkpoint").iterdir())


def test_one_table_compares_all_eight(folders):
    table = [json.loads((folder / "result.json").read_text()) for folder in folders.values()]
    assert [{name: row[name] for name in SWITCHES} for row in table] == ARMS
    assert all(row["all_moved"] for row in table)  # every weight has learned, whatever the loss and the network
    assert all(math.isfinite(row["loss"]) and row["steps"] == EPOCHS * 2 for row in table)
    assert all(0 <= row["accuracy"] <= 1 for row in table)
    assert len({row["loss"] for row in table}) == 8  # no switch is without effect


@pytest.mark.parametrize("cell", [False, True])
def test_the_loss_of_every_step_bounds_that_of_their_mean_for_either_network(recordings, cell):
    """Cross-entropy is convex in the class scores (TET's paper, section 3.2)."""
    frames = snn_nda.NDA("paper")(torch.from_numpy(recordings.x_train[:BATCH]))
    labels = torch.from_numpy(recordings.y_train[:BATCH])
    outputs = network(cell=cell)(snn_tet.sequence(frames)).double()  # an untrained network differs in the eighth digit
    assert outputs.shape == (TIME_STEPS, BATCH, 10)
    spread = (outputs - outputs.mean(0)).abs().max()
    assert spread > 0  # else both losses were the same
    assert snn_tet.sdt_loss(outputs, labels) < snn_tet.tet_loss(outputs, labels, lam=0.0)
