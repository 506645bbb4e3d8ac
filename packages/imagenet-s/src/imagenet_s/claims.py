"""What the paper says, measured on small nets and real images, and on a pretrained net without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

PAPER = "Wang et al., 2021, arXiv 2109.00864"
FOLLOW_UP = "Zhang et al., MLSys 2023, arXiv 2307.00280"
SHOWN = ("turbo-fastdct", "ijg-9e", "ffmpeg", "turbo-boxup")
"""Decoders beside Pillow in the demo; `--full` takes all that differ here."""
CROPS = 140


def garments(trial: Trial) -> dict[str, float]:
    """One seed: a net trained on one pipeline and a net trained on a mix of all 33, run on all 33 views.

    The seed decides initial weights, order and the mix; images are the same for all. Figures are in percent of the test
    images, or points of them.
    """
    import numpy as np

    from imagenet_s import miniature

    train, labels = miniature.views("train", trial.workdir.parent, trial.data)
    test, truth = miniature.views("test", trial.workdir.parent, trial.data)
    reference = miniature.VIEWS.index(miniature.REFERENCE)
    nets = {
        "fixed": miniature.trained(trial.seed, train[reference : reference + 1], labels),
        "mixed": miniature.trained(trial.seed, train, labels),
    }
    right = {name: _classes(net, test) == truth for name, net in nets.items()}
    accuracy = {name: 100 * each.mean(1) for name, each in right.items()}
    figures: dict[str, float] = {}
    for name, each in accuracy.items():
        fooled = right[name][reference] & ~right[name].all(0)
        figures |= {
            f"{name}_reference": each[reference],
            f"{name}_mean": each.mean(),
            f"{name}_worst": each.min(),
            f"{name}_std": each.std(),
            f"{name}_range": each.max() - each.min(),
            f"{name}_fooled": 100 * fooled.mean(),
        }
    nearest = miniature.VIEWS.index(("pillow", "opencv-nearest"))
    figures["opencv_nearest_drop"] = accuracy["fixed"][reference] - accuracy["fixed"][nearest]
    for decoder in miniature.DECODERS[1:]:
        other = miniature.VIEWS.index((decoder, miniature.REFERENCE[1]))
        figures[f"{decoder}_drop".replace("-", "_")] = accuracy["fixed"][reference] - accuracy["fixed"][other]
    figures["worst_drop"] = accuracy["fixed"][reference] - figures["fixed_worst"]
    figures["spread_halved"] = float(np.log(0.5 * figures["fixed_std"] / figures["mixed_std"]))
    figures["reference_gain"] = figures["mixed_reference"] - figures["fixed_reference"]
    figures["fewer_fooled"] = figures["fixed_fooled"] - figures["mixed_fooled"]
    return {name: float(value) for name, value in figures.items()}


def _classes(net: nn.Module, views: np.ndarray) -> np.ndarray:
    """Classes of all views, [33, n]."""
    import numpy as np
    import torch

    from imagenet_s.miniature import normalised

    with torch.no_grad():
        return np.stack(
            [torch.cat([net(normalised(part)) for part in np.array_split(v, 20)]).argmax(1).numpy() for v in views]
        )


def photographs(trial: Trial) -> dict[str, float]:
    """One seed: EfficientNet-Lite0 with its ImageNet weights on crops of photographs, decoded by several decoders.

    There are no labels, so figures are percentages of the crops whose first class changes: disagreement, never accuracy.
    The seed decides the crops.
    """
    import torch

    from imagenet_s.decoding import decoders
    from imagenet_s.models import load_model
    from imagenet_s.photographs import crops
    from imagenet_s.pipelines import Pipeline

    model: Any = load_model("lite0", trial.device)
    model.to(memory_format=torch.channels_last)
    files = crops(CROPS, trial.seed)
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    names = [name for name, each in decoders().items() if each.available and name != "pillow"] if trial.full else SHOWN
    reference = _first_classes(model, files, Pipeline(resizer="pillow-bicubic", mean=mean, std=std))
    figures: dict[str, float] = {}
    for name in names:
        other = _first_classes(model, files, Pipeline(decoder=name, resizer="pillow-bicubic", mean=mean, std=std))
        figures[f"{name}_flips".replace("-", "_")] = float(100 * (other != reference).mean())
    resized = _first_classes(model, files, Pipeline(resizer="opencv-linear", mean=mean, std=std))
    return {**figures, "opencv_linear_flips": float(100 * (resized != reference).mean()), "most": max(figures.values())}


def _first_classes(model: Any, files: list[bytes], pipeline: Any) -> np.ndarray:
    import numpy as np
    import torch

    batches = (np.stack([pipeline(file) for file in files[start : start + 14]]) for start in range(0, len(files), 14))
    with torch.inference_mode():
        parts = [model(torch.from_numpy(batch).contiguous(memory_format=torch.channels_last)) for batch in batches]
    return torch.cat(parts).argmax(1).numpy()


def _claim(name: str, statement: str, source: str, paper_value: str | None, **more: Any) -> Claim:
    """A claim about the garments, unless it says otherwise."""
    more = {"measure": garments, "unit": "points of test accuracy", "seeds": 3, **more}
    return Claim(id=name, statement=statement, source=source, paper_value=paper_value, **more)


CLAIMS = (
    _claim(
        "spread",
        "Over 3 decoders and 11 resizers, the accuracy of a net trained on one pipeline spreads by more than 3 points.",
        f"{PAPER}, abstract",
        "1 to 5 points (ResNet-50, ImageNet)",
        effect="fixed_range",
        margin=3.0,
    ),
    _claim(
        "worst-view",
        "The worst view costs more than 1 point against the pipeline that the net was trained on.",
        f"{PAPER}, abstract",
        "1 to 5 points (ResNet-50, ImageNet)",
        effect="worst_drop",
        margin=1.0,
    ),
    _claim(
        "mixing-halves",
        "Training on a mix of decoders and resizers more than halves the standard deviation over the views.",
        f"{FOLLOW_UP}, mix training",
        None,
        effect="spread_halved",
        unit="log ratio of half the fixed net's deviation to the mixed net's",
    ),
    _claim(
        "mixing-costs-little",
        "Training on the mix costs at most 1 point on the pipeline that the other net was trained on.",
        f"{FOLLOW_UP}, mix training",
        None,
        effect="reference_gain",
        margin=-1.0,
    ),
    _claim(
        "fewer-fooled",
        "Of the net trained on the mix, fewer images are right on the reference and wrong on some view.",
        f"{PAPER}, mitigation",
        None,
        effect="fewer_fooled",
        unit="points of the test images",
    ),
    _claim(
        "decoders-flip",
        "Some correct decoder changes the first class of more than 1 % of photographs, nothing else being changed.",
        f"{PAPER}, decoders",
        None,
        measure=photographs,
        effect="most",
        margin=1.0,
        unit="% of crops whose first class changes (EfficientNet-Lite0, no labels)",
    ),
)
