"""What the paper says, measured on real images before a simulated event camera."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from core_utils.data import Split
    from core_utils.spiking.networks import SpikingNetwork
    from core_utils.training import Loader
    from snn_nda.augment import Augmentation

PAPER = "Li et al., ECCV 2022, arXiv 2203.06145"
EPOCHS = 40
LONG_EPOCHS = 200
"""As many as the paper trains."""
PRETRAIN_EPOCHS, PRETRAIN_BATCH, PRETRAIN_RATE = 25, 64, 0.2
"""With the paper's policy as views; chosen among two rates and policies on training images alone (seed 100)."""
FINE_TUNING_RATE = 2e-3
"""The best of four on training images alone; the same as from scratch."""


def miniature(trial: Trial) -> dict[str, float]:
    """One seed: the same recordings, initial weights and order, trained without and with NDA.

    Accuracies are in percent after the last epoch, on the fixed test recordings and, for the gap, on the training
    recordings without augmentation; nothing is selected on either.
    """
    return _compared(trial, ("none", "nda"), EPOCHS)


def long_miniature(trial: Trial) -> dict[str, float]:
    """`miniature` for as many epochs as the paper trains."""
    return _compared(trial, ("none", "nda"), LONG_EPOCHS)


def other_augmentations(trial: Trial) -> dict[str, float]:
    """`miniature` with two more arms, NDA without its mirror, and brightness and noise instead of NDA; and flatness."""
    return _compared(trial, ("none", "nda", "noflip", "photometric"), EPOCHS, flatness=True)


def simsiam(trial: Trial) -> dict[str, float]:
    """One seed: an encoder pre-trained without labels beside a new one, for the same labelled recordings.

    Pre-trained on ten times as many recordings as there are labelled ones; compared are a linear probe of frozen
    features, and fine-tuning with NDA beside training from scratch with NDA.
    """
    from core_utils.training import Arrays, Loader
    from snn_nda import calibrate, linear_probe, posed_miniature

    unlabelled = posed_miniature(trial.seed, train_per_class=200, test_per_class=1, data=trial.data)
    split = posed_miniature(trial.seed, data=trial.data)
    known, unseen = _batches(split.x_train, split.y_train), _batches(split.x_test, split.y_test)
    new, model = _network(trial.seed), _network(trial.seed)
    calibrate(new.blocks, known)
    probes = {"new": linear_probe(new.blocks, known, unseen)}
    recordings = Loader(Arrays(unlabelled.x_train, unlabelled.y_train), PRETRAIN_BATCH, seed=trial.seed)
    last = _pretrained(trial, model, recordings)
    probes["pretrained"] = linear_probe(model.blocks, known, unseen)
    reports = {
        "scratch": _trained(trial, "nda", split, EPOCHS, _network(trial.seed)),
        "fine_tuned": _trained(trial, "fine_tuned", split, EPOCHS, model, FINE_TUNING_RATE),
    }
    scratch, tuned = (100 * report["test_accuracy"][-1] for report in reports.values())
    new_probe, probe = (100 * each["test_accuracy"] for each in probes.values())
    return {
        "gain_of_probe": probe - new_probe,
        "gain_of_fine_tuning": tuned - scratch,
        "new_probe_test_accuracy": new_probe,
        "pretrained_probe_test_accuracy": probe,
        "scratch_test_accuracy": scratch,
        "fine_tuned_test_accuracy": tuned,
        "scratch_train_accuracy": 100 * reports["scratch"]["train_accuracy"][-1],
        "fine_tuned_train_accuracy": 100 * reports["fine_tuned"]["train_accuracy"][-1],
        "pretraining_loss": last["loss"],
        "spread": last["spread"],
        "healthy_spread": last["healthy_spread"],
    }


def _compared(trial: Trial, arms: tuple[str, ...], epochs: int, *, flatness: bool = False) -> dict[str, float]:
    """The figures of every arm, and what each has over the first (`<arm>_...` but for the arm "nda")."""
    from core_utils.files import write_atomically
    from snn_nda import gap_summary, posed_miniature
    from snn_nda.plots import gap_figure

    split = posed_miniature(trial.seed, data=trial.data)
    models = {arm: _network(trial.seed) for arm in arms}
    reports = {arm: _trained(trial, arm, split, epochs, model) for arm, model in models.items()}
    picture = gap_figure(
        {arm: [report] for arm, report in reports.items()}, f"Seen and unseen data (seed {trial.seed})"
    )
    write_atomically(trial.workdir / "figures" / "gap.svg", picture)

    summaries = {arm: gap_summary(report) for arm, report in reports.items()}
    none = summaries["none"]
    figures: dict[str, float] = {}
    for arm in arms[1:]:
        this, prefix = summaries[arm], "" if arm == "nda" else f"{arm}_"
        figures |= {
            f"{prefix}test_gain": 100 * (this["test_accuracy"] - none["test_accuracy"]),
            f"{prefix}gap_removed": 100 * (none["gap"] - this["gap"]),
            f"{prefix}instability_removed": 100 * (none["instability"] - this["instability"]),
            f"{prefix}loss_gap_removed": none["loss_gap"] - this["loss_gap"],
        }
    for arm, this in summaries.items():
        for name in ("train_accuracy", "test_accuracy", "gap", "instability", "selection_bonus"):
            figures[f"{arm}_{name}"] = 100 * this[name]
        for name in ("train_loss", "test_loss"):
            figures[f"{arm}_{name}"] = this[name]
    if flatness:
        rises = {arm: _rise(model, split, trial.seed) for arm, model in models.items()}
        figures |= {f"{arm}_loss_rise": rise for arm, rise in rises.items()}
        figures["loss_rise_removed"] = rises["none"] - rises["nda"]
    if "noflip" in summaries:
        figures["gain_of_the_mirror"] = 100 * (summaries["nda"]["test_accuracy"] - summaries["noflip"]["test_accuracy"])
        figures["photometric_loss"] = -figures["photometric_test_gain"]
    return figures


def _network(seed: int) -> SpikingNetwork:
    """The miniature's network; its initial weights follow from the seed."""
    from core_utils.training import seed_everything
    from snn_nda import tiny_vgg

    seed_everything(seed)
    return tiny_vgg()


def _pretrained(trial: Trial, model: SpikingNetwork, recordings: Loader) -> dict[str, Any]:
    """Pre-trains the blocks of a network in place; the record of the last epoch."""
    from core_utils.runs import Run
    from snn_nda import NDA, Geometric, PretrainConfig, SimSiam, pretrain

    config = PretrainConfig(epochs=PRETRAIN_EPOCHS, batch_size=PRETRAIN_BATCH, base_rate=PRETRAIN_RATE, seed=trial.seed)
    with Run.open(trial.workdir / "pretrain", {"config": config, "data": trial.data}, resume=True) as run:
        whole = SimSiam(model.blocks, config.dim, size=24)
        history = pretrain(
            whole, recordings, config, augment=Geometric(NDA("paper")), run=run, device=trial.device, progress=False
        )
    return history.last


def _trained(
    trial: Trial, arm: str, split: Split, epochs: int, model: SpikingNetwork, rate: float = 2e-3
) -> dict[str, list[float]]:
    """Trains a network in place as an arm says; its gap report over the last ten epochs."""
    from core_utils.runs import Run
    from core_utils.training import Arrays, Loader, seed_everything
    from snn_nda import TrainConfig, gap_report, train
    from snn_nda.gap import STABLE_OVER

    config = TrainConfig(epochs=epochs, learning_rate=rate, seed=trial.seed, watch_last=STABLE_OVER)
    watch = {"train": _batches(split.x_train, split.y_train), "test": _batches(split.x_test, split.y_test)}
    seed_everything(trial.seed)
    facts = {"config": config, "data": trial.data, "arm": arm}
    with Run.open(trial.workdir / arm, facts, resume=True) as run:
        history = train(
            model,
            Loader(Arrays(split.x_train, split.y_train), config.batch_size, seed=trial.seed),
            config,
            augment=_augmentation(arm),
            watch=watch,
            run=run,
            device=trial.device,
            progress=False,
        )
    return gap_report(history)


def _rise(model: SpikingNetwork, split: Split, seed: int) -> float:
    """How much the training loss rises, nats, where every filter is displaced by half its norm."""
    from snn_nda import loss_rise

    return loss_rise(model, _batches(split.x_train, split.y_train), 0.5, directions=10, seed=seed)


def _batches(frames: np.ndarray, labels: np.ndarray, size: int = 50) -> list[tuple[Tensor, Tensor]]:
    import torch

    together = torch.from_numpy(frames), torch.from_numpy(labels)
    return list(zip(*(part.split(size) for part in together), strict=True))


def _augmentation(arm: str) -> Augmentation | None:
    """NDA of the miniature: mirror 0.5 and one of roll +-2 pixels, rotation and shear +-15 degrees: level 1 at 24."""
    from snn_nda import NDA
    from snn_nda.augment import Geometric, Photometric

    if arm == "none":
        return None
    if arm == "photometric":
        return Photometric()
    return Geometric(NDA(magnitude=1, ops=("roll", "rotate", "shear"), flip=0.0 if arm == "noflip" else 0.5))


_SMALL: dict[str, Any] = {"paper_value": None, "unit": "points", "measure": miniature}

CLAIMS = (
    Claim(
        id="test-gain",
        statement="A network trained with NDA is more accurate on unseen recordings than one trained without.",
        source=f"{PAPER}, abstract",
        paper_value="+10.1 points (CIFAR10-DVS, ResNet-19), +13.7 points (N-Caltech101)",
        unit="points",
        measure=miniature,
        effect="test_gain",
    ),
    Claim(
        id="smaller-gap",
        statement="With NDA the accuracy on training recordings exceeds that on unseen ones by less than without.",
        source=f"{PAPER}, train and test curves",
        effect="gap_removed",
        **_SMALL,
    ),
    Claim(
        id="steadier",
        statement="With NDA the test accuracy varies less over the last ten epochs than without.",
        source=f"{PAPER}, test curves",
        effect="instability_removed",
        **_SMALL,
    ),
    Claim(
        id="test-gain-long",
        statement="Trained for as many epochs as in the paper (200), NDA still gains accuracy on unseen recordings.",
        source=f"{PAPER}, abstract",
        paper_value="+10.1 points (CIFAR10-DVS, ResNet-19), +13.7 points (N-Caltech101)",
        unit="points",
        measure=long_miniature,
        effect="test_gain",
        full_only=True,
    ),
    Claim(
        id="photometric",
        statement="Brightness and noise in place of NDA do not gain a point of accuracy on unseen recordings.",
        source=f"{PAPER}, section on photometric augmentation",
        paper_value=None,
        unit="points",
        measure=other_augmentations,
        effect="photometric_loss",
        margin=-1.0,
        seeds=3,
        full_only=True,
    ),
    Claim(
        id="mirror",
        statement="NDA is not worse by more than a point with its mirror than without.",
        source=f"{PAPER}, transformations; the mirror is not in the released code",
        paper_value=None,
        unit="points",
        measure=other_augmentations,
        effect="gain_of_the_mirror",
        margin=-1.0,
        seeds=3,
        full_only=True,
    ),
    Claim(
        id="flatter-minimum",
        statement="Displaced by half the norm of each filter, the training loss rises less after NDA than without.",
        source=f"{PAPER}, loss landscape",
        paper_value=None,
        unit="nats",
        measure=other_augmentations,
        effect="loss_rise_removed",
        seeds=3,
        full_only=True,
    ),
    Claim(
        id="simsiam-probe",
        statement="Frozen features pre-trained without labels (SimSiam, NDA) are linearly more accurate than random ones.",
        source=f"{PAPER}, contrastive learning section",
        paper_value=None,
        unit="points",
        measure=simsiam,
        effect="gain_of_probe",
        seeds=3,
        full_only=True,
    ),
    Claim(
        id="simsiam-fine-tuning",
        statement="Fine-tuned after pre-training without labels, a network is more accurate than trained from scratch.",
        source=f"{PAPER}, contrastive learning section (N-Caltech101 to CIFAR10-DVS; here within one data set)",
        paper_value=None,
        unit="points",
        measure=simsiam,
        effect="gain_of_fine_tuning",
        seeds=3,
        full_only=True,
    ),
)
