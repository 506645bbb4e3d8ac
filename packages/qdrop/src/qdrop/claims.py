"""What the paper says, measured on a small residual net and real images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qdrop import QuantizedModel

PAPER = "Wei et al., ICLR 2022, arXiv 2203.05740"
SAMPLES, ITERS = 256, 400
"""Calibration images, and iterations per unit, in the demo; `--full` takes the paper's."""
FULL_SAMPLES, FULL_ITERS = 1024, 20_000
BITS = 2
FOREIGN_CLASSES = (7, 8)
"""Sneakers and bags: calibrated on these alone, most of the test set is out of domain."""
MAGNITUDES, JUDGED = (0.0, 0.05, 0.1, 0.2), 0.1
"""Random displacements of the weights, in norms of each channel, and the one whose rise of the loss is judged."""
DIRECTIONS, EVERY = 5, 5
"""Random directions, and the test images that they are walked on: every fifth."""


def miniature(trial: Trial) -> dict[str, float]:
    """One seed: one float net, quantised to W2A2 by each method from the same calibration images.

    The seed decides the calibration images, the samples of every iteration and what is dropped. Accuracies are in
    percent of the fixed test set, which nothing is chosen by; agreements in percent of the float net's classes.
    """
    from core_utils.files import write_atomically
    from qdrop import agreement, evaluate
    from qdrop import miniature as small
    from qdrop.plots import flatness_figure

    net = small.float_net(trial.workdir.parent, data=trial.data)
    count = FULL_SAMPLES if trial.full else SAMPLES
    own, foreign = (small.calibration(trial.seed, count, c, data=trial.data) for c in (None, FOREIGN_CLASSES))
    images, labels = small.evaluation_images(trial.data)
    test = list(zip(images.split(500), labels.split(500), strict=True))

    models = {name: _quantised(net, own, method, trial) for name, method in _METHODS.items()}
    elsewhere = {name: _quantised(net, foreign, _METHODS[name], trial, "foreign") for name in ("case_2", "qdrop")}
    accuracy = {name: 100 * evaluate(model, test) for name, model in models.items()}
    accuracy_elsewhere = {name: 100 * evaluate(model, test) for name, model in elsewhere.items()}
    agreed = {
        f"{name}_agreement_on_{where}": 100 * agreement(models[name], net, batches)
        for name in ("case_1", "case_2", "qdrop")
        for where, batches in (("calibration", own.split(64)), ("test", test))
    }
    some = [(images[::EVERY], labels[::EVERY])]
    rise, curves = _flatness(net, {name: models[name] for name in ("case_1", "case_2", "qdrop")}, some, trial)
    title = f"W2A2 nets with their weights displaced (seed {trial.seed})"
    picture = flatness_figure(curves, "test cross-entropy (nats)", title, "svg")
    write_atomically(trial.workdir / "figures" / "flatness.svg", picture)
    return {
        "float": 100 * evaluate(net, test),
        **accuracy,
        **{f"{name}_foreign": value for name, value in accuracy_elsewhere.items()},
        **agreed,
        **{f"{name}_rise": value for name, value in rise.items()},
        "reconstruction": accuracy["case_1"] - accuracy["nearest"],
        "activations": accuracy["case_2"] - accuracy["case_1"],
        "over_case_1": accuracy["qdrop"] - accuracy["case_1"],
        "drop": accuracy["qdrop"] - accuracy["case_2"],
        "drop_foreign": accuracy_elsewhere["qdrop"] - accuracy_elsewhere["case_2"],
        "flatter": rise["case_2"] - rise["qdrop"],
    }


_METHODS = {"nearest": "nearest", "case_1": "brecq", "case_2": "case2", "qdrop": "qdrop"}


def _quantised(net: nn.Module, images: Tensor, method: Any, trial: Trial, domain: str = "own") -> QuantizedModel:
    """Finished units stay in the trial's folder, so that an interrupted trial goes on."""
    from qdrop import QDropConfig, quantize

    iters = FULL_ITERS if trial.full else ITERS
    config = QDropConfig(w_bits=BITS, a_bits=BITS, method=method, iters=iters, seed=trial.seed)
    folder = trial.workdir / f"{method}-{domain}"
    return quantize(net, images.split(64), config, workdir=folder, progress=False)


def _flatness(
    net: nn.Module, models: dict[str, QuantizedModel], test: list[Any], trial: Trial
) -> tuple[dict[str, float], dict[str, Any]]:
    """By how many nats the test loss rises at the judged displacement, and all rows for the picture."""
    from qdrop import flatness

    rows = {name: flatness(net, model, test, MAGNITUDES, DIRECTIONS, trial.seed) for name, model in models.items()}

    def mean(name: str, magnitude: float) -> float:
        losses = [row.loss for row in rows[name] if row.magnitude == magnitude]
        return sum(losses) / len(losses)

    return {name: mean(name, JUDGED) - mean(name, 0.0) for name in rows}, rows


def imagenet(trial: Trial) -> dict[str, float]:
    """One seed of ResNet-18 at W2A2 on ImageNet; `--data` holds `train`, `val` and `resnet18.safetensors` or `.pth`."""
    from core_utils.errors import UserError

    if trial.data is None:
        raise UserError("this claim needs ImageNet", "--data DIR with train, val and resnet18.safetensors or .pth")
    weights = next((f for f in (trial.data / f"resnet18{s}" for s in (".safetensors", ".pth")) if f.is_file()), None)
    if weights is None:
        raise UserError(
            f"{trial.data} holds no resnet18.safetensors or resnet18.pth", "put torchvision's weights there"
        )
    from qdrop import QDropConfig, evaluate, quantize
    from qdrop.data import batches, samples
    from qdrop.models import float_model

    found = float_model("torchvision:resnet18", weights)
    net = found.model.to(trial.device)
    train, val = (samples(str(trial.data), part, found.preprocessing) for part in ("train", "test"))
    calib, test = batches(train, 64, count=FULL_SAMPLES, seed=trial.seed), batches(val, 64)
    figures = {"float": 100 * evaluate(net, test)}
    for name in ("brecq", "case2", "qdrop"):
        config = QDropConfig(w_bits=BITS, a_bits=BITS, method=name, seed=trial.seed)  # type: ignore[arg-type]  # a method
        qm = quantize(net, calib, config, workdir=trial.workdir / name, progress=False)
        figures[name] = 100 * evaluate(qm, test)
    return {"gain": figures["qdrop"] - figures["case2"], "over_brecq": figures["qdrop"] - figures["brecq"], **figures}


def _claim(name: str, statement: str, source: str, paper_value: str | None, **more: Any) -> Claim:
    """A claim about the miniature, unless it says otherwise."""
    more = {"measure": miniature, "unit": "points of test accuracy", **more}
    return Claim(id=name, statement=statement, source=f"{PAPER}, {source}", paper_value=paper_value, **more)


_PROTOCOL = "+0.3 to +1.2 points at W4A4 and W2A4, +0.9 to +4.2 at W3A3 (ImageNet, MQBench's rerun of both)"

CLAIMS = (
    _claim(
        "reconstruction",
        "At W2A2, rounding learned block by block (case 1, BRECQ) is more accurate than rounding to nearest.",
        "cases 1 to 3",
        None,
        effect="reconstruction",
    ),
    _claim(
        "activations",
        "At W2A2, rounding that is learned behind quantised activations (case 2) is more accurate than behind float ones "
        "(case 1).",
        "cases 1 to 3",
        None,
        effect="activations",
    ),
    _claim(
        "over-brecq",
        "At W2A2, QDrop is more accurate than BRECQ (case 1).",
        "abstract",
        "up to 51.49 points (ImageNet)",
        effect="over_case_1",
    ),
    _claim(
        "drop",
        "At W2A2, dropping half of the activation quantisation is more accurate than dropping none.",
        "ablation of the drop",
        _PROTOCOL,
        effect="drop",
    ),
    _claim(
        "drop-foreign",
        "The same, calibrated on images of two of the ten classes only.",
        "calibration data of another domain",
        None,
        effect="drop_foreign",
    ),
    _claim(
        "flatter",
        "Random displacements of a tenth of each channel's norm raise the test loss of QDrop's net less than of the net "
        "learned without drop.",
        "figure on flatness",
        None,
        effect="flatter",
        unit="nats",
    ),
    _claim(
        "imagenet-resnet18",
        "At W2A2, ResNet-18 on ImageNet is more accurate with QDrop than without drop.",
        "results on ImageNet",
        "51.14 % with QDrop",
        measure=imagenet,
        effect="gain",
        seeds=3,
        full_only=True,
    ),
)
