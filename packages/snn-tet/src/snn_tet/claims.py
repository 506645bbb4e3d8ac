"""What the paper says, measured on real images before a simulated event camera."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    from torch import nn

    from snn_tet.job import Preset

PAPER = "Deng et al., ICLR 2022, arXiv 2202.11946"
INHERITED = ((2, 30, 2e-3), (5, 5, 5e-4))
"""Time inheritance training: steps, epochs and learning rate of each stage."""
RADIUS = 0.5
"""How far the weights are displaced to see how flat a minimum is, in norms of each filter."""


def miniature(trial: Trial) -> dict[str, float]:
    """One seed: the same data and initial weights, trained with SDT, with TET, and with TET by time inheritance.

    Accuracies are in percent of the fixed test set, after the last epoch; nothing is selected on it.
    """
    from core_utils.files import write_atomically
    from snn_tet.plots import accuracy_vs_steps_figure

    arms = {arm: _trained(arm, trial) for arm in ("sdt", "tet", "inherited")}
    accuracy, single = ({arm: each[name] for arm, each in arms.items()} for name in ("prefix", "single"))
    shown = {name: [value / 100 for value in accuracy[name.lower()]] for name in ("SDT", "TET")}
    picture = accuracy_vs_steps_figure(shown, f"Does accuracy hold with fewer steps? (seed {trial.seed})")
    write_atomically(trial.workdir / "figures" / "accuracy-over-time-steps.svg", picture)

    spread = {arm: max(values) - min(values) for arm, values in accuracy.items()}
    mean = {arm: sum(values) / len(values) for arm, values in single.items()}
    share = arms["inherited"]["seconds"] / arms["tet"]["seconds"]
    return {
        "gain_at_one_step": accuracy["tet"][0] - accuracy["sdt"][0],
        "gain_of_single_steps": mean["tet"] - mean["sdt"],
        "spread_removed": spread["sdt"] - spread["tet"],
        "gain_at_trained_steps": accuracy["tet"][-1] - accuracy["sdt"][-1],
        "loss_rise_removed": arms["sdt"]["loss_rise"] - arms["tet"]["loss_rise"],
        "gain_of_inheritance": accuracy["inherited"][-1] - accuracy["tet"][-1],
        "time_saved": 60.0 - 100.0 * share,
        "inherited_share_of_time": 100.0 * share,
        **{f"{arm}_accuracy_{step}_steps": v for arm in arms for step, v in enumerate(accuracy[arm], start=1)},
        **{f"{arm}_single_step": value for arm, value in mean.items()},
        **{f"{arm}_spread": value for arm, value in spread.items()},
        **{f"{arm}_loss_rise": arms[arm]["loss_rise"] for arm in ("sdt", "tet")},
        **{f"{arm}_training_seconds": each["seconds"] for arm, each in arms.items()},
    }


def cifar100(trial: Trial) -> dict[str, float]:
    """One seed of the paper's ResNet-19 on CIFAR-100, trained with SDT and with TET; `--data` is CIFAR-100's folder."""
    return _paper_arms("cifar100", trial)


def dvs_cifar10(trial: Trial) -> dict[str, float]:
    """One seed of the paper's VGGSNN on CIFAR10-DVS, trained with SDT and with TET; `--data` holds a folder a class."""
    return _paper_arms("cifar10-dvs", trial)


def _paper_arms(preset: Preset, trial: Trial) -> dict[str, float]:
    """Both losses in one of the paper's configurations, run once on the test data after the last epoch."""
    from core_utils.runs import Run
    from core_utils.settings import settings
    from snn_tet import accuracy_vs_steps
    from snn_tet.job import JobConfig, evaluation_loader, fit_job, load_data, preset_file

    figures: dict[str, float] = {}
    for loss in ("sdt", "tet"):
        typed = {"loss": loss, "seed": trial.seed}
        config = settings(JobConfig, file=preset_file(preset), typed=typed).complete
        data = load_data(config, trial.data)
        with Run.open(trial.workdir / loss, {"config": config, "data": trial.data}, resume=True) as run:
            model = fit_job(config, data, trial.data, run=run, device=trial.device, progress=False)
        test = evaluation_loader(config, data.test)
        accuracy = accuracy_vs_steps(model, test, config.time_steps, encoding=config.encoding)["prefix"]
        figures |= {f"{loss}_accuracy_{step}_steps": 100 * value for step, value in enumerate(accuracy, start=1)}
        figures[loss] = 100 * accuracy[-1]
    return {"gain": figures.pop("tet") - figures.pop("sdt"), **figures}


class CpuClock:
    """CPU time of this process between calls; a training that was interrupted and resumed keeps what it had spent."""

    def __init__(self) -> None:
        self._spent, self._since = 0.0, time.process_time()

    @property
    def seconds(self) -> float:
        """CPU time so far."""
        return self._spent + time.process_time() - self._since

    def state_dict(self) -> dict[str, Any]:
        """What to go on from."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there."""
        self._spent, self._since = state_dict["seconds"], time.process_time()


def _trained(arm: str, trial: Trial) -> dict[str, Any]:
    """Trains one arm and measures it: accuracies over steps, CPU time, and how steep the loss is around it."""
    from core_utils.runs import Run
    from core_utils.training import Arrays, Loader, seed_everything
    from snn_tet import (
        Loaders,
        Stage,
        TrainConfig,
        accuracy_vs_steps,
        loss_rise,
        posed_miniature,
        time_inheritance,
        tiny_vgg,
        train,
    )

    sizes = {"train_per_class": 400, "test_per_class": 200} if trial.full else {}
    config = TrainConfig(loss="sdt" if arm == "sdt" else "tet", seed=trial.seed)

    def loaders(time_steps: int) -> Loaders:
        split = posed_miniature(trial.seed, time_steps=time_steps, data=trial.data, **sizes)
        return Loaders(
            Loader(Arrays(split.x_train, split.y_train), config.batch_size, seed=trial.seed),
            Loader(Arrays(split.x_test, split.y_test), 250, shuffle=False),
        )

    data = {steps: loaders(steps) for steps in ({2, 5} if arm == "inherited" else {5})}
    seed_everything(trial.seed)
    model: nn.Module = tiny_vgg()
    facts = {"config": config, "data": trial.data, "full": trial.full, "arm": arm}
    with Run.open(trial.workdir / arm, facts, resume=True) as run:
        clock = CpuClock()
        more: dict[str, Any] = {"run": run, "state": {"clock": clock}, "device": trial.device, "progress": False}
        if arm == "inherited":
            stages = [Stage(*stage) for stage in INHERITED]
            time_inheritance(model, stages, lambda steps: Loaders(data[steps].train), config, **more)
        else:
            train(model, Loaders(data[5].train), config, **more)
        seconds = clock.seconds
    accuracy = accuracy_vs_steps(model, data[5].validation or ())
    rise = loss_rise(model, data[5].train, RADIUS, directions=5, seed=trial.seed) if arm != "inherited" else None
    percent = {name: [100 * value for value in values] for name, values in accuracy.items()}
    return {**percent, "seconds": seconds, "loss_rise": rise}


CLAIMS = (
    Claim(
        id="one-step",
        statement="Run for one time step, a network trained with TET is more accurate than one trained with SDT.",
        source=f"{PAPER}, time scalability robustness",
        paper_value=None,
        unit="points",
        measure=miniature,
        effect="gain_at_one_step",
    ),
    Claim(
        id="single-steps",
        statement="The output of a single time step is more accurate on average with TET than with SDT.",
        source=f"{PAPER}, time scalability robustness",
        paper_value=None,
        unit="points",
        measure=miniature,
        effect="gain_of_single_steps",
    ),
    Claim(
        id="flatter-in-time",
        statement="Accuracy varies less over the number of time steps (1 to 5) with TET than with SDT.",
        source=f"{PAPER}, time scalability robustness",
        paper_value=None,
        unit="points of spread",
        measure=miniature,
        effect="spread_removed",
    ),
    Claim(
        id="trained-steps",
        statement="At the number of time steps it was trained for, TET is not worse than SDT by more than one point.",
        source=f"{PAPER}, ImageNet table (TET) and Fang et al. 2021 (SEW-ResNet-34 without TET)",
        paper_value="+0.96 points (ImageNet, SEW-ResNet-34, 4 steps: 68.00 % against 67.04 %)",
        unit="points",
        measure=miniature,
        effect="gain_at_trained_steps",
        margin=-1.0,
    ),
    Claim(
        id="flatter-minimum",
        statement="Displaced by half the norm of each filter, a TET network's training loss rises less than an SDT one's.",
        source=f"{PAPER}, loss landscape",
        paper_value=None,
        unit="nats",
        measure=miniature,
        effect="loss_rise_removed",
    ),
    Claim(
        id="inheritance-accuracy",
        statement="Time inheritance training (2 steps, then 5) is not worse than 5 steps throughout by more than one point.",
        source=f"{PAPER}, time inheritance training",
        paper_value=None,
        unit="points",
        measure=miniature,
        effect="gain_of_inheritance",
        margin=-1.0,
    ),
    Claim(
        id="inheritance-time",
        statement="Time inheritance training takes at most 60 % of the CPU time of training with 5 steps throughout.",
        source=f"{PAPER}, time inheritance training",
        paper_value=None,
        unit="points below 60 %",
        measure=miniature,
        effect="time_saved",
    ),
    Claim(
        id="cifar100",
        statement="ResNet-19 on CIFAR-100 at 6 time steps is more accurate when trained with TET than with SDT.",
        source=f"{PAPER}, CIFAR table",
        paper_value="74.72 % with TET (not verified), about 70 to 71 % with SDT (not verified)",
        unit="points",
        measure=cifar100,
        effect="gain",
        seeds=3,
        full_only=True,
    ),
    Claim(
        id="dvs-cifar10",
        statement="VGGSNN on CIFAR10-DVS at 10 time steps is more accurate when trained with TET than with SDT.",
        source=f"{PAPER}, abstract and DVS-CIFAR10 table",
        paper_value="83.17 % with TET and augmentation; more than 10 % above earlier work",
        unit="points",
        measure=dvs_cifar10,
        effect="gain",
        seeds=3,
        full_only=True,
    ),
)
