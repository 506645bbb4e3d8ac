"""What the paper says, measured on real images in small networks.

The paper's headline, that the score ranks cells by accuracy, needs its CIFAR protocol (`ranking`, under `--full`); the
miniature reports its rank correlations beside the two claims that a small experiment can decide.
"""

from __future__ import annotations

import bisect
import math
from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from core_utils.data import Split
    from snasnet.cells import Cell
    from snasnet.specs import DatasetSpec

METRICS = ("sahd", "hd")
PAPER = "Kim et al., ECCV 2022, arXiv 2201.10355"
SCORED = 30
"""Cells of each kind that a trial scores."""
TRAINED = 3
"""Cells of each sort that a trial trains."""
STEPS, STEPS_IN_FULL = 80, 200
"""Of a training; the demo has as many as its time allows, whatever they give."""
RANDOM = 12
"""Random cells that the searched one is held against."""
SCORING: dict[str, Any] = {"width": 12, "hidden": 64, "T": 4}
TRAINING: dict[str, Any] = {"width": 8, "hidden": 64, "T": 4}


def firing(trial: Trial) -> dict[str, float]:
    """One seed: random cells are scored by both distances, and both scores are held against the cells' firing rates.

    Effects are differences of Spearman's correlations, plain distance minus corrected one.
    """
    import numpy as np
    from scipy.stats import spearmanr

    from core_utils.files import write_atomically
    from snasnet import DatasetSpec, SearchSpace, cell_scores, miniature_images
    from snasnet.plots import scatter_figure

    figures: dict[str, float] = {}
    images = miniature_images(trial.seed, size=8, train_per_class=20, data=trial.data)
    batch = _batch(images, 128)
    for kind in ("forward", "backward"):
        cells = _distinct(SearchSpace(kind), SCORED * (3 if trial.full else 1), [trial.seed, 11])
        scored = [
            cell_scores(cell, DatasetSpec(1, 8, 10), batch, METRICS, seed=trial.seed, **SCORING) for cell in cells
        ]
        found = dict(zip(METRICS, zip(*scored, strict=True), strict=True))
        usable = [i for i in range(len(cells)) if not (found["sahd"][i].degenerate or found["hd"][i].degenerate)]
        rates = np.array([found["sahd"][i].rate for i in usable])
        scores = {metric: np.array([results[i].score for i in usable]) for metric, results in found.items()}
        meter = {metric: float(spearmanr(values, rates).statistic) for metric, values in scores.items()}
        figures |= {f"{kind}_{metric}_against_rate": value for metric, value in meter.items()}
        figures[f"{kind}_less"] = meter["hd"] - meter["sahd"]
        figures[f"{kind}_degenerate"] = float(len(cells) - len(usable))
        figures[f"{kind}_seconds_a_score"] = float(np.mean([result.seconds for result in found["sahd"]]))
        named = {metric.upper(): values for metric, values in scores.items()}
        picture = scatter_figure(named, rates, f"Score against firing rate ({kind} cells, seed {trial.seed})")
        write_atomically(trial.workdir / "figures" / f"score-against-rate-{kind}.svg", picture)
    return figures


def feedback(trial: Trial) -> dict[str, float]:
    """One seed: cells with feedback that does nothing but add up, and cells without such, trained alike.

    Accuracies are in percent of the fixed test set, after the last step; nothing is selected on it.
    """
    import numpy as np
    from scipy.stats import mannwhitneyu

    from snasnet import DatasetSpec, SearchSpace, miniature_images

    spec, images = DatasetSpec(1, 8, 10), miniature_images(trial.seed, size=8, data=trial.data)
    rng = np.random.default_rng([trial.seed, 23])
    groups: dict[str, list[Cell]] = {"without": [], "idle": []}
    count = 2 * TRAINED if trial.full else TRAINED
    while min(map(len, groups.values())) < count:
        cell = SearchSpace("backward").sample(rng)
        group = groups["without" if cell.n_backward_idle == 0 else "idle"]
        wanted = cell.n_backward_idle == 0 or cell.n_backward_idle >= 2
        if wanted and len(group) < count and cell not in group:
            group.append(cell)
    cells = groups["without"] + groups["idle"]
    rows = _rows(cells, spec, _batch(images, 128), trial.seed, TRAINING)
    accuracies = {cell.id: _trained(cell, images, trial) for cell in cells}
    mean = {name: float(np.mean([accuracies[cell.id] for cell in cells])) for name, cells in groups.items()}
    ordered = mannwhitneyu(
        *([accuracies[cell.id] for cell in cells] for cells in groups.values()), alternative="greater"
    )
    return {
        "lost": mean["without"] - mean["idle"],
        **{f"accuracy_{name}": value for name, value in mean.items()},
        "mann_whitney_p": float(ordered.pvalue),
        **_correlations(rows, accuracies),
        "median_cell": float(np.median(list(accuracies.values()))),
    }


def searched(trial: Trial) -> dict[str, float]:
    """One seed: the best of 200 draws of each kind, beside random cells and a hand-made network, trained alike.

    Accuracies are in percent of the fixed test set, after the last step; nothing is selected on it.
    """
    import numpy as np

    from core_utils.training import seed_everything
    from snasnet import DatasetSpec, SearchSpace, miniature_images, parameters, search

    spec, images = DatasetSpec(1, 8, 10), miniature_images(trial.seed, size=8, data=trial.data)
    batch = _batch(images, 128)
    best, figures = {}, {}
    for kind in ("forward", "backward"):
        found = search(SearchSpace(kind), spec, batch, n=200, seed=trial.seed, options=TRAINING, progress=False)
        best[kind] = found.best
        figures[f"best_{kind}"] = _trained(found.best, images, trial)
    cells = _distinct(SearchSpace("backward"), RANDOM, [trial.seed, 41])
    accuracies = {cell.id: _trained(cell, images, trial) for cell in cells}
    count = parameters(best["backward"], spec, **TRAINING)
    seed_everything(trial.seed)
    figures |= {
        "median_random": float(np.median(list(accuracies.values()))),
        **_correlations(_rows(cells, spec, batch, trial.seed, TRAINING), accuracies),
        "hand_made": _trained_network(_hand_made(count), "hand-made", images, trial),
        "best_backward_5_steps": _trained(best["backward"], images, trial, T=5),
        "best_backward_10_steps": _trained(best["backward"], images, trial, T=10),
    }
    return {
        **figures,
        "over_random": figures["best_backward"] - figures["median_random"],
        "over_hand_made": figures["best_backward"] - figures["hand_made"],
        "backward_over_forward": figures["best_backward"] - figures["best_forward"],
        "gain_of_10_steps": figures["best_backward_10_steps"] - figures["best_backward_5_steps"],
    }


def ranking(trial: Trial) -> dict[str, float]:
    """One seed of the paper's protocol on CIFAR-10, whose folder is `--data`: random cells scored and trained.

    Half of the paper's width and a fifth of its epochs: enough to order cells, hours on a GPU.
    """
    from core_utils.errors import UserError
    from core_utils.runs import Run
    from core_utils.training import Loader, seed_everything
    from snasnet import SearchSpace, SNASNet, TrainConfig, accuracy, load_data, train

    if trial.data is None:
        raise UserError("claim score-ranks-cells needs CIFAR-10", "add --data DIR")
    data = load_data("cifar10", trial.data, seed=trial.seed)
    config, cells = TrainConfig(epochs=60, seed=trial.seed), _distinct(SearchSpace("backward"), 30, [trial.seed, 31])
    rows = _rows(cells, data.spec, data.batch(256, trial.seed).to(trial.device), trial.seed, {"width": 64})
    accuracies = {}
    for cell in cells:
        seed_everything(trial.seed)
        model = SNASNet(cell, data.spec, width=64)
        loader = Loader(data.train, config.batch_size, seed=trial.seed, transform=data.augment, workers=4)
        with Run.open(trial.workdir / cell.id, {"cell": cell.id, "seed": trial.seed}, resume=True) as run:
            train(model, (loader, None), config, run=run, device=trial.device, progress=False)
        accuracies[cell.id] = 100 * accuracy(model, Loader(data.test, 250, shuffle=False))
    figures = _correlations(rows, accuracies)
    return {**figures, "tau": figures["tau_sahd"], "over_plain": figures["tau_sahd"] - figures["tau_hd"]}


def _rows(
    cells: Sequence[Cell], spec: DatasetSpec, batch: Tensor, seed: int, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What could rank cells before they are trained: both scores, parameters, convolutions."""
    from snasnet import cell_scores, parameters

    rows = []
    for cell in cells:
        results = cell_scores(cell, spec, batch, METRICS, seed=seed, **options)
        scores = {metric: result.score for metric, result in zip(METRICS, results, strict=True)}
        rows.append({"id": cell.id, **scores, "params": parameters(cell, spec, **options), "convs": cell.n_convs})
    return rows


def _correlations(rows: Sequence[Mapping[str, Any]], accuracies: Mapping[str, float]) -> dict[str, float]:
    """Kendall's tau of each with the accuracies, and its bootstrap interval; degenerate cells are left out."""
    from snasnet import correlate

    scored = [row for row in rows if all(math.isfinite(row[name]) for name in METRICS)]
    if len(scored) < 3:
        return {}
    figures: dict[str, float] = {}
    for name, taus in correlate(scored, accuracies, columns=(*METRICS, "params", "convs")).items():
        figures |= dict(zip((f"tau_{name}", f"tau_{name}_low", f"tau_{name}_high"), taus, strict=True))
    return figures


def _distinct(space: Any, count: int, seed: list[int]) -> list[Cell]:
    """Random cells, each once."""
    import numpy as np

    rng = np.random.default_rng(seed)
    cells: dict[str, Cell] = {}
    while len(cells) < count:
        cell = space.sample(rng)
        cells[cell.id] = cell
    return list(cells.values())


def _batch(images: Split, samples: int) -> Any:
    """Training images of all classes."""
    import numpy as np
    import torch

    return torch.from_numpy(images.x_train[np.linspace(0, len(images.x_train) - 1, samples).astype(int)])


def _trained(cell: Cell, images: Split, trial: Trial, **options: Any) -> float:
    """Accuracy of a cell on the test set, percent."""
    from core_utils.training import seed_everything
    from snasnet import DatasetSpec, SNASNet

    seed_everything(trial.seed)
    model = SNASNet(cell, DatasetSpec(1, 8, 10), **{**TRAINING, **options})
    return _trained_network(model, f"{cell.id}-{model.T}-steps", images, trial)


def _trained_network(model: nn.Module, name: str, images: Split, trial: Trial) -> float:
    """Accuracy of any network on the test set, percent; its initial weights are drawn."""
    from core_utils.runs import Run
    from core_utils.training import Arrays, Loader
    from snasnet import TrainConfig, accuracy, train

    steps = STEPS_IN_FULL if trial.full else STEPS
    config = TrainConfig(steps=steps, batch_size=32, optimizer="adamw", learning_rate=1e-2, lowest=0.0, seed=trial.seed)
    loader = Loader(Arrays(images.x_train, images.y_train), config.batch_size, seed=trial.seed)
    with Run.open(trial.workdir / name, {"network": name, "config": config}, resume=True) as run:
        train(model, (loader, None), config, run=run, device=trial.device, progress=False)
    return 100 * accuracy(model, Loader(Arrays(images.x_test, images.y_test), 250, shuffle=False))


def _hand_made(count: int) -> nn.Module:
    """A network like VGG with two stages and about so many parameters, and the neurons of the searched ones."""
    import torch
    from torch import nn

    from core_utils.spiking.networks import SpikingNetwork, vgg_blocks
    from snasnet.networks import lif_neuron

    class HandMade(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            layout: Any = (width, width, "AP", 2 * width, 2 * width, "AP")
            blocks = nn.Sequential(*vgg_blocks(1, layout, lif_neuron()))
            self.network = SpikingNetwork(blocks, nn.Linear(2 * width * 4, 10))

        def forward(self, x: Any) -> Any:
            return self.network(x.expand(TRAINING["T"], *x.shape)).mean(0)

    def size(width: int) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in HandMade(width).parameters())

    wider = bisect.bisect_left(range(3, 64), count, key=size) + 3
    return HandMade(min((wider - 1, wider), key=lambda width: abs(size(width) - count)))


CLAIMS = (
    Claim(
        id="less-a-rate-meter-forward",
        statement="Over random forward cells, the SAHD score follows the mean firing rate less than the plain HD score.",
        source=f"{PAPER}, sparsity-aware Hamming distance",
        paper_value=None,
        unit="Spearman correlation",
        measure=firing,
        effect="forward_less",
    ),
    Claim(
        id="less-a-rate-meter-backward",
        statement="Over random backward cells, the SAHD score follows the mean firing rate less than the plain HD score.",
        source=f"{PAPER}, sparsity-aware Hamming distance",
        paper_value=None,
        unit="Spearman correlation",
        measure=firing,
        effect="backward_less",
    ),
    Claim(
        id="idle-feedback-hurts",
        statement="Cells with two or more feedback edges without a convolution are less accurate than cells without such.",
        source=f"{PAPER}, architecture findings over 100 random cells",
        paper_value="two or more backward skips hurt",
        unit="points",
        measure=feedback,
        effect="lost",
    ),
    Claim(
        id="searched-beats-random",
        statement="The cell of the highest SAHD score of 200 draws is more accurate than the median random cell.",
        source=f"{PAPER}, main table",
        paper_value=None,
        unit="points",
        measure=searched,
        effect="over_random",
        full_only=True,
    ),
    Claim(
        id="searched-beats-hand-made",
        statement="That cell is more accurate than a network like VGG of as many parameters.",
        source=f"{PAPER}, main table",
        paper_value=None,
        unit="points",
        measure=searched,
        effect="over_hand_made",
        full_only=True,
    ),
    Claim(
        id="feedback-helps",
        statement="The best backward cell is more accurate than the best forward cell.",
        source=f"{PAPER}, main table",
        paper_value="+0.61 points (CIFAR-10), +2.99 (CIFAR-100)",
        unit="points",
        measure=searched,
        effect="backward_over_forward",
        full_only=True,
    ),
    Claim(
        id="more-steps-help",
        statement="The best backward cell is more accurate with 10 time steps than with 5.",
        source=f"{PAPER}, time steps",
        paper_value="+0.42 points (CIFAR-100, 73.04 to 73.46 %)",
        unit="points",
        measure=searched,
        effect="gain_of_10_steps",
        full_only=True,
    ),
    Claim(
        id="score-ranks-cells",
        statement="Over random cells trained on CIFAR-10, accuracy rises with the SAHD score (Kendall's tau above 0).",
        source=f"{PAPER}, ablation of the score",
        paper_value="tau 0.646 (plain HD: 0.519), CIFAR-100",
        unit="Kendall's tau",
        measure=ranking,
        effect="tau",
        seeds=3,
        full_only=True,
    ),
    Claim(
        id="score-beats-plain-distance",
        statement="Over random cells trained on CIFAR-10, SAHD ranks accuracies better than plain HD does.",
        source=f"{PAPER}, ablation of the score",
        paper_value="0.646 against 0.519, CIFAR-100",
        unit="Kendall's tau",
        measure=ranking,
        effect="over_plain",
        seeds=3,
        full_only=True,
    ),
)
