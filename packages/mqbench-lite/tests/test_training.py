"""Training: settings, what decays, and resuming to the same bits after a signal or a kill."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_nets import loader, net, shapes
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from core_utils.errors import CheckFailed
from core_utils.runs import Run
from mqbench_lite.calibration import calibrate, quantizers_of, reestimate_batch_norm
from mqbench_lite.errors import CalibrationError, NotCalibratedError, TrainingError
from mqbench_lite.training import PRESETS, TrainSettings, optimizer_of, train

ALGORITHMS = ["lsq", "pact", "dorefa", "dsq", "ste", "qil", "apot"]
FAST = TrainSettings(lr=0.05, warmup_lr=0.01)


def ready(algorithm="lsq", **settings):
    settings = {"per_channel": algorithm not in ("qil", "apot")} | settings
    return calibrate(reestimate_batch_norm(net(algorithm, **settings), loader(seed=3)), loader(seed=3))


def bits(model):
    return {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}


def trained(algorithm="lsq", run=None, epochs=2, **settings):
    model = ready(algorithm)
    history = train(model, loader(128), epochs, settings=FAST, run=run, progress=False, **settings)
    return model, history


def accuracy(model):
    images, labels = shapes(400, seed=77)
    with torch.no_grad():
        return (model.eval()(images).argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_quantised_model_learns_with_every_algorithm(algorithm):
    """Ten noisy patterns at 4 bit, from random weights: chance is 0.1."""
    model = ready(algorithm)
    before = bits(model)
    history = train(model, loader(512), 6, settings=TrainSettings(lr=0.1, warmup_lr=0.05), progress=False)
    assert history.records[-1]["loss"] < history.records[0]["loss"]
    assert accuracy(model) > 0.7
    learned = {"lsq": ".step", "pact": ".alpha", "qil": ".center", "apot": ".alpha"}.get(algorithm)
    if learned:
        after = bits(model)
        names = [name for name in after if name.endswith(learned)]
        assert names
        assert all(after[name] != before[name] for name in names)


def test_the_published_settings():
    """Spec 2.6."""
    rows = {name: (s.lr, s.weight_decay, s.batch_size, s.steps, s.warmup_steps) for name, s in PRESETS.items()}
    assert rows == {
        "resnet18": (0.004, 1e-4, 64, 250_000, 2_500),
        "resnet50": (0.004, 1e-4, 16, 500_000, 5_000),
        "resnet50-tensorrt": (0.004, 1e-4, 64, 500_000, 5_000),
        "regnet_x_600mf": (0.004, 1e-4, 32, 250_000, 2_500),
        "mobilenet_v2": (0.01, 1e-5, 32, 250_000, 2_500),
        "efficientnet_lite0": (0.01, 1e-5, 32, 250_000, 2_500),
    }
    assert {(s.momentum, s.label_smoothing, s.warmup_lr) for s in PRESETS.values()} == {(0.9, 0.1, 1e-4)}


def test_the_rate_rises_linearly_and_falls_along_half_a_cosine_to_0():
    factor = PRESETS["resnet18"].schedule(250_000)
    rate = [0.004 * factor(step / 250_000) for step in (0, 1_250, 2_500, 126_250, 250_000)]
    assert rate == pytest.approx([1e-4, (1e-4 + 4e-3) / 2, 4e-3, 2e-3, 0.0])
    assert TrainSettings().schedule(50)(0.0) == 1.0  # less than a hundred steps have no warm-up
    with pytest.raises(TrainingError, match="leave none of 100"):
        PRESETS["resnet18"].schedule(100)


def test_weights_and_pacts_ends_decay_and_nothing_else_does():
    model = ready("pact")
    optimizer = optimizer_of(model, TrainSettings(weight_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert decayed == {"stem.weight", "body.weight", "head.weight", "first.alpha", "second.alpha", "third.alpha"}
    assert others == {"norm.weight", "norm.bias", "second_norm.weight", "second_norm.bias", "body.bias", "head.bias"}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)
    lsq = optimizer_of(ready("lsq"), TrainSettings())
    assert all(p.dim() > 1 for p in lsq.param_groups[0]["params"])


def test_the_loss_is_the_smoothed_cross_entropy():
    model = ready()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    history = train(model, loader(32), 1, bn_batches=0, progress=False)
    assert history.last["loss"] == pytest.approx(math.log(10), rel=1e-5)  # uniform outputs


@pytest.mark.parametrize("state", ["idle", "observing"])
def test_training_asks_for_calibration_first(state):
    model = net()
    error = NotCalibratedError
    if state == "observing":
        model, error = ready(), CalibrationError
        model.second.observe()
    with pytest.raises(NotCalibratedError, match=f"is {state}.*calibrate before training"):
        train(model, loader(), progress=False)
    with pytest.raises(error):
        model.train()(shapes(2)[0])


def test_a_learned_scale_is_kept_when_training_goes_on():
    """Spec trap 7: nothing re-initialises what was learned."""
    model, _ = trained(epochs=1)
    first = model.second.step.item()
    with torch.no_grad():
        model.eval()(shapes(16)[0])
    assert model.second.step.item() == first
    train(model, loader(32), 1, lr=1e-9, progress=False)
    assert model.second.step.item() == pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ((torch.zeros(8, 1, 8, 8), torch.zeros(8, 1, dtype=torch.int64)), r"class numbers, got torch.int64 \[8, 1\]"),
        ((torch.zeros(8, 1, 8, 8), torch.zeros(8)), "class numbers, got torch.float32"),
        ((torch.zeros(8, 1, 8, 8), torch.full((8,), 10)), r"lie in \[0, 10\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(batch, match):
    with pytest.raises(TrainingError, match=match):
        train(ready(), DataLoader(TensorDataset(*batch), 8), progress=False)


def test_one_class_is_refused():
    model = ready()
    model.head = torch.nn.Linear(16, 1)
    with pytest.raises(TrainingError, match=r"classes >= 2\], got \[32, 1\]"):
        train(model, loader(), progress=False)


def test_a_plain_loader_is_read_in_an_order_of_its_own_and_others_are_refused():
    data = TensorDataset(*shapes(64))
    models = [ready(), ready()]
    for model, each in zip(models, (DataLoader(data, 16, shuffle=True), loader(64, 16)), strict=True):
        train(model, each, 1, settings=FAST, progress=False)
    assert bits(models[0]) == bits(models[1])
    with pytest.raises(TrainingError, match="cannot be repeated"):
        train(ready(), DataLoader(data, 16, sampler=WeightedRandomSampler([1.0] * 64, 64)), progress=False)


def test_a_loss_that_leaves_the_finite_numbers_stops_the_training():
    with pytest.raises(CheckFailed, match="loss became nan at step 0"):
        train(ready(), loader(), loss=lambda model, batch, _: model(batch[0]).sum() * math.nan, progress=False)


def test_statistics_are_estimated_anew_before_the_first_step():
    model = ready()
    model.norm.running_mean.fill_(50.0)
    frozen = {"settings": TrainSettings(lr=1e-9, warmup_lr=1e-9), "progress": False, "steps": 1}
    train(model, loader(), **frozen)
    assert model.norm.running_mean.abs().max() < 5
    model.norm.running_mean.fill_(50.0)
    train(model, loader(), bn_batches=0, **frozen)
    assert model.norm.running_mean.min() > 40


def interrupting(call):
    """A hook that presses Ctrl-C in the given forward pass."""
    count = 0

    def hook(*_):
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGINT)

    return hook


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_stopped_by_ctrl_c_ends_with_the_bits_of_an_uninterrupted_one(algorithm, tmp_path):
    whole, history = trained(algorithm)
    for call in (3, 6, 8):  # amid the four that estimate statistics; after the second step; at the end of the epoch
        path = tmp_path / str(call)
        with Run.open(path, {"seed": 0}) as run:
            model = ready(algorithm)
            model.register_forward_pre_hook(interrupting(call))
            with pytest.raises(KeyboardInterrupt):
                train(model, loader(128), 2, settings=FAST, run=run, progress=False)
        with Run.open(path, {"seed": 0}, resume=True) as run:
            resumed, records = trained(algorithm, run=run)
        assert bits(resumed) == bits(whole)
        assert records == history


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_training import *
model, count = ready("lsq"), 0
def kill(*_):
    global count
    count += 1
    if count == 4 + 6:  # statistics take the loader's four batches; the sixth step lies in the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
model.register_forward_pre_hook(kill)
with Run.open(sys.argv[1], {"seed": 0}) as run:
    train(model, loader(128), 2, settings=FAST, run=run, progress=False)
"""


def test_a_training_that_was_killed_goes_on_from_the_last_epoch_to_the_same_bits(tmp_path):
    whole, history = trained()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0]
    with Run.open(tmp_path / "run", {"seed": 0}, resume=True) as run:
        resumed, records = trained(run=run)
    assert bits(resumed) == bits(whole)
    assert records == history
    assert {quantizer.state for _, quantizer in quantizers_of(resumed)} == {"ready"}


def test_a_finished_training_is_returned_and_not_trained_further(tmp_path):
    with Run.open(tmp_path / "run", {"seed": 0}) as run:
        whole, history = trained(run=run)
        again, records = trained(run=run)
    assert bits(again) == bits(whole)
    assert records == history


def test_a_model_that_is_frozen_has_nothing_to_train():
    model = ready()
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        train(model, loader(), progress=False)
