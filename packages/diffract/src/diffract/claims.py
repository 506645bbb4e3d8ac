"""What the two papers say, measured on real digits in a miniature of their design."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    import numpy as np

    from diffract import EvalTable, TrainResult

LUO = "Luo et al., eLight 2:4 (2022), arXiv 2107.06586"
LI = "Li et al., IEEE JSTQE (2022), arXiv 2205.00428"
LENGTHS = (1.0, 1.5, 2.5)
"""Wavelengths: deviations of the smoothing Gaussian that networks are tested with; its L is 3.5 times that."""


def imaging(trial: Trial) -> dict[str, float]:
    """One seed: networks trained with many, few, one and no diffusers, of several depths, and vaccinated.

    The seed decides digits, diffusers and order. Figures are Pearson correlations over the whole grid (64 x 64 pixels),
    means over 20 test digits and 12 new diffusers, or differences of such.
    """
    from diffract import Misalignment, baselines, evaluate
    from diffract.miniature import miniature_design, miniature_objects, new_diffusers
    from diffract.tolerances import over_draws

    images, test = miniature_objects(trial.seed, trial.data)
    design = miniature_design(trial.seed, full=trial.full)
    new = new_diffusers(design)
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "without": {"diffuser__kind": "none"},
        "n4": {"train__n": 4},
        "n1": {"train__n": 1},
        "layers2": {"geometry__n_layers": 2},
        "layers1": {"geometry__n_layers": 1},
        "vaccinated": {"train__lateral": "0.6 mm"},
    }
    trained = {name: _trained(trial, images, **changes) for name, changes in variants.items()}
    over_new = {name: evaluate(each.network, test, new) for name, each in trained.items()}
    known = {name: evaluate(each.network, test, each.known).mean for name, each in trained.items() if len(each.known)}
    figures = {f"{name}_new": table.mean for name, table in over_new.items()}
    figures |= {f"{name}_std": table.std for name, table in over_new.items()}
    figures |= {f"{name}_known": value for name, value in known.items()}
    figures |= {f"{name}_none": evaluate(each.network, test, None).mean for name, each in trained.items()}
    rivals = [
        baselines.free_space(design.grid, design.planes),
        baselines.lens(design.grid, design.planes),
        baselines.lens(design.grid, design.planes, kind="paraxial"),
    ]
    for rival in rivals:
        over_new[rival.name] = evaluate(rival, test, new)
        name = rival.name.replace(" ", "_")
        figures |= {f"{name}_new": over_new[rival.name].mean, f"{name}_none": evaluate(rival, test, None).mean}
    best = max((rival.name for rival in rivals), key=lambda name: over_new[name].mean)
    gap = {name: known[name] - over_new[name].mean for name in ("plain", "n4", "n1")}
    moved = Misalignment(lateral=0.6e-3)
    displaced = {
        name: over_draws(trained[name].network, test, new, moved, trial.seed) for name in ("plain", "vaccinated")
    }
    refocused = baselines.refocus(design.grid, design.planes)
    if trial.seed == 0:
        _pictures(trial, trained["plain"], test, new)
    return {
        **figures,
        "refocus_none": evaluate(refocused, test, None).mean,
        "over_baselines": _over(over_new["plain"], over_new[best]),
        "over_baselines_p": _paired_p(over_new["plain"], over_new[best]),
        "over_without": _over(over_new["plain"], over_new["without"]),
        "over_without_p": _paired_p(over_new["plain"], over_new["without"]),
        **{f"{name}_gap": value for name, value in gap.items()},
        "gap_shrinks": gap["n1"] - gap["plain"],
        "gap_in_order": min(gap["n1"] - gap["n4"], gap["n4"] - gap["plain"]),
        "many_over_one": _over(over_new["plain"], over_new["n1"]),
        "depth": _over(over_new["plain"], over_new["layers1"]),
        "depth_in_order": min(
            _over(over_new["layers2"], over_new["layers1"]), _over(over_new["plain"], over_new["layers2"])
        ),
        **{f"{name}_displaced": table.mean for name, table in displaced.items()},
        "vaccination_pays": _over(displaced["vaccinated"], displaced["plain"]),
        "vaccination_costs": _over(over_new["plain"], over_new["vaccinated"]),
    }


def lengths(trial: Trial) -> dict[str, float]:
    """One seed: networks trained on short, long and mixed correlation lengths at one strength, tested on each.

    Figures are as for `imaging`, by training and test: `short_on_2.5` was trained on the shortest and tested on the
    longest.
    """
    from diffract import evaluate
    from diffract.miniature import miniature_design, miniature_objects, new_diffusers

    images, test = miniature_objects(trial.seed, trial.data)
    screens: dict[str, Any] = {}
    for length in LENGTHS:
        screens[f"{length}"] = new_diffusers(miniature_design(trial.seed, diffuser__sigma=(f"{length} lambda",)))
    screens["none"] = None
    training = {"short": LENGTHS[:1], "long": LENGTHS[-1:], "mixed": LENGTHS}
    figures: dict[str, float] = {}
    for name, sigma in training.items():
        result = _trained(trial, images, diffuser__sigma=tuple(f"{each} lambda" for each in sigma))
        figures |= {f"{name}_on_{on}": evaluate(result.network, test, each).mean for on, each in screens.items()}
        figures[f"{name}_retained"] = figures[f"{name}_on_{LENGTHS[0]}"] / figures[f"{name}_on_none"]
    mean = {name: sum(figures[f"{name}_on_{each}"] for each in LENGTHS) / len(LENGTHS) for name in training}
    undistorted = figures[f"short_on_{LENGTHS[0]}"] - figures[f"long_on_{LENGTHS[0]}"]
    fidelity = figures["long_on_none"] - figures["short_on_none"]
    return {
        **figures,
        "fidelity": fidelity,
        "trade_off": min(undistorted, fidelity),
        "range_over_single": mean["mixed"] - max(mean["short"], mean["long"]),
    }


def published(trial: Trial) -> dict[str, float]:
    """One seed of the published geometry and training; MNIST's IDX files are `--data`, else the digits are enlarged."""
    from diffract import Design, baselines, evaluate, load_objects, placed, train
    from diffract.miniature import new_diffusers

    objects, design = load_objects(trial.data), Design.preset("luo2022").with_(seed=trial.seed)
    result = train(design, objects.train, trial.workdir / "run", resume=True)
    test, new = placed(objects.test[:100], design.grid, design.object_side), new_diffusers(design, 20)
    table = evaluate(result.network, test, new)
    rivals = [
        baselines.free_space(design.grid, design.planes),
        baselines.lens(design.grid, design.planes, focal_length=145.6 * 0.75e-3, pupil=104 * 0.75e-3),
    ]
    others = {rival.name.replace(" ", "_"): evaluate(rival, test, new).mean for rival in rivals}
    return {
        "new": table.mean,
        "new_std": table.std,
        "known": evaluate(result.network, test, result.known).mean,
        **{f"{name}_new": value for name, value in others.items()},
        "over_baselines": table.mean - max(others.values()),
    }


def _trained(trial: Trial, images: np.ndarray, **changes: Any) -> TrainResult:
    """Trained with the cheap propagation, judged by the accurate one."""
    from diffract import train
    from diffract.miniature import miniature_design

    result = train(miniature_design(trial.seed, full=trial.full, **changes), images)
    return dataclasses.replace(result, network=result.network.resampled())


def _over(ours: EvalTable, theirs: EvalTable) -> float:
    return ours.mean - theirs.mean


def _paired_p(ours: EvalTable, theirs: EvalTable) -> float:
    """One-sided paired t-test over diffusers."""
    from scipy.special import stdtr

    difference = ours.per_diffuser - theirs.per_diffuser
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    return float(stdtr(len(difference) - 1, -difference.mean() / error))


def _pictures(trial: Trial, result: TrainResult, test: np.ndarray, new: Any) -> None:
    import numpy as np

    from core_utils.files import write_atomically
    from diffract import baselines, diffused, pcc
    from diffract.plots import montage_figure, phases_figure, picture

    network, shown = result.network, test[:6]
    free = baselines.free_space(network.grid, network.geometry)
    distorted, seen = (np.asarray(each(diffused(each.illuminated(shown), new[:1])))[:, 0] for each in (free, network))
    scores = {
        name: np.asarray(pcc(images, shown)).tolist() for name, images in (("free space", distorted), ("network", seen))
    }
    montage = montage_figure(
        {"object": shown, "free space": distorted, "network": seen},
        network.grid,
        title="Behind a new diffuser: correlation with the object",
        scores=scores,
    )
    for name, figure in (
        ("montage", montage),
        ("layers", phases_figure(np.asarray(network.phases[...]), network.grid)),
    ):
        write_atomically(trial.workdir / "figures" / f"{name}.svg", picture(figure, ".svg"))


def _claim(name: str, statement: str, source: str, paper_value: str | None, effect: str, **more: Any) -> Claim:
    more = {"measure": imaging, "unit": "correlation", "seeds": 3, **more}
    return Claim(id=name, statement=statement, source=source, paper_value=paper_value, effect=effect, **more)


CLAIMS = (
    _claim(
        "beats-free-space-and-lenses",
        "Through new random diffusers a trained network's images correlate with the objects by more than 0.12 better than "
        "those of free space and of lenses.",
        f"{LUO}, figures 2 and S4",
        "0.79 against 0.54 without layers",
        "over_baselines",
        margin=0.12,
    ),
    _claim(
        "diffusers-in-training-help",
        "Through new diffusers it beats a network that was trained without diffusers by more than 0.03.",
        LUO,
        None,
        "over_without",
        margin=0.03,
    ),
    _claim(
        "overfitting-falls",
        "The gap between known and new diffusers is larger by more than 0.08 with 1 diffuser an epoch than with 16.",
        f"{LI}, abstract; {LUO}",
        None,
        "gap_shrinks",
        margin=0.08,
    ),
    _claim(
        "overfitting-in-order",
        "The gap falls from 1 to 4 and from 4 to 16 diffusers an epoch.",
        f"{LI}, abstract; {LUO}",
        None,
        "gap_in_order",
    ),
    _claim(
        "more-diffusers-help",
        "Through new diffusers 16 diffusers an epoch beat 1.",
        f"{LI}, abstract; {LUO}",
        None,
        "many_over_one",
    ),
    _claim(
        "depth-helps",
        "Through new diffusers 4 layers beat 1 by more than 0.08.",
        f"{LI}, abstract",
        None,
        "depth",
        margin=0.08,
    ),
    _claim("depth-in-order", "2 layers beat 1, and 4 beat 2.", f"{LI}, abstract", None, "depth_in_order"),
    _claim(
        "vaccination-pays",
        "With layers off by up to two pixels, training with such displacements gains more than 0.08.",
        f"{LI}, abstract",
        None,
        "vaccination_pays",
        margin=0.08,
    ),
    _claim(
        "vaccination-costs",
        "With layers in their places, training with displacements costs correlation.",
        f"{LI}, abstract",
        None,
        "vaccination_costs",
    ),
    _claim(
        "fidelity-falls-with-shorter-length",
        "Without a diffuser, training on a long correlation length gives the better images than on a short one.",
        f"{LI}, abstract",
        None,
        "fidelity",
        measure=lengths,
    ),
    _claim(
        "length-trade-off",
        "Training on a short correlation length is better on short ones, on a long one without a diffuser.",
        f"{LI}, abstract",
        None,
        "trade_off",
        measure=lengths,
    ),
    _claim(
        "range-of-lengths-helps",
        "Averaged over three correlation lengths, training on all three beats training on the shortest or the longest.",
        f"{LI}, abstract",
        None,
        "range_over_single",
        measure=lengths,
    ),
    _claim(
        "published-geometry",
        "In the published geometry a network beats free space and the lens by more than 0.12 through new diffusers.",
        f"{LUO}, figures 2 and S4",
        "0.77 to 0.80 on digits",
        "over_baselines",
        measure=published,
        margin=0.12,
        full_only=True,
    ),
)
