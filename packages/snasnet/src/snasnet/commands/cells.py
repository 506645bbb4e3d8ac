"""Commands on single cells: draw them by lot, score them, make pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from core_utils import cli
from core_utils.errors import UserError
from core_utils.files import write_atomically
from snasnet.commands.folders import search_result

Kind = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class OnData(cli.Command):
    """What commands have that score cells on data."""

    dataset: str = "digits"  # digits, fashion, or in --data: cifar10, cifar100, tinyimagenet, images, events
    data: Path | None = None  # folder of the data
    image_size: int | None = None  # height and width that images or event frames are scaled to, pixels
    sensor: tuple[int, int] = (128, 128)  # width and height of the event camera, pixels
    batch: int = 256  # training samples that cells are scored on
    width: int = 16  # channels of the first cell
    time_steps: int = 5  # for which an image is shown, or frames of a recording
    p2: int = 2  # side of the pooled squares before the classifier, pixels
    hidden: int = 128  # neurons of the classifier
    stem_stride: int = 1  # of the first convolution; the paper has 2 for TinyImageNet
    head: Literal["paper", "gap"] = "paper"  # classifier
    metric: Literal["sahd", "hd"] = "sahd"  # distance of the score
    alpha: Literal["code", "half-n"] = "code"  # 0.5 as released, or half the neurons
    repeats: int = 1  # initial weights to average over
    seed: int = 0  # decides everything random
    device: str = "cpu"  # cpu, cuda, cuda:1, mps or auto

    def given(self) -> dict[str, Any]:
        """The spec of the data, and the batch."""
        from core_utils.training import resolve_device
        from snasnet.datasets import load_data

        names = ("seed", "time_steps", "image_size", "sensor")
        data = load_data(self.dataset, self.data, **{name: getattr(self, name) for name in names})
        return {"spec": data.spec, "batch": data.batch(self.batch, self.seed).to(resolve_device(self.device))}

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `SNASNet`."""
        names = ("width", "p2", "hidden", "stem_stride", "head")
        return {"T": self.time_steps, **{name: getattr(self, name) for name in names}}

    @property
    def scoring(self) -> dict[str, Any]:
        """What a score is."""
        return {name: getattr(self, name) for name in ("metric", "alpha", "repeats", "seed")}


@dataclass(frozen=True, kw_only=True)
class Sample(cli.Command):
    """Draw cells by lot, as the paper does."""

    kind: Kind = "backward"  # backward may have feedback
    n: int = 1  # draws
    max_backward: int | None = None  # most edges with feedback
    seed: int = 0  # decides the draws

    def __call__(self) -> None:
        """Prints one cell a line."""
        import numpy as np

        from snasnet.spaces import SearchSpace

        if self.n < 1:
            raise UserError(f"--n must be at least 1, got {self.n}")
        space, rng = SearchSpace(self.kind, max_backward=self.max_backward), np.random.default_rng([self.seed, 0])
        cells = [space.sample(rng) for _ in range(self.n)]
        self.show([cell.to_json() for cell in cells] if self.json else "\n".join(map(str, cells)))


@dataclass(frozen=True, kw_only=True)
class Score(OnData):
    """Score one cell without training it."""

    cell: tyro.conf.Positional[str]  # such as "0302 0030 3003 0000"

    def __call__(self) -> None:
        """Prints score, sign, firing rates and costs."""
        cell = valid_cell(self.cell).pruned()
        from snasnet import most_sops, parameters, score_cell

        given, more = self.given(), self.options
        result = score_cell(cell, given["spec"], given["batch"], **self.scoring, **more)
        self.show(
            {
                "cell": str(cell),
                "score": result.score,
                "sign": result.sign,
                "degenerate": result.degenerate,
                "mean_firing_rate": result.rate,
                "dead_fraction": result.dead_fraction,
                "parameters": parameters(cell, given["spec"], **more),
                "most_synaptic_operations": most_sops(cell, given["spec"], **more),
                "seconds": result.seconds,
                "rates": dict(result.rates),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Plot(cli.Command):
    """Draw a cell; or, of a search, the scores of its cells against their firing rates."""

    cell: tyro.conf.Positional[str | None] = None  # such as "0302 0030 3003 0000"
    search: Path | None = None  # folder of `snasnet search` instead
    out: Path = Path("cell.svg")  # .svg, or .dot for a cell in Graphviz's language

    def __call__(self) -> None:
        """Writes the picture."""
        if (self.cell is None) == (self.search is None):
            raise UserError("give a cell or --search, and not both")
        if self.out.suffix != ".svg" and (self.out.suffix != ".dot" or self.cell is None):
            raise UserError(f"--out {self.out} must end in .svg, or for a cell in .dot")
        write_atomically(self.out, self._cell(self.cell) if self.cell is not None else self._scores())
        self.show({"picture": self.out})

    def _cell(self, text: str) -> str:
        from snasnet.cells import Cell
        from snasnet.plots import cell_figure

        return Cell(text).to_dot() if self.out.suffix == ".dot" else cell_figure(Cell(text))

    def _scores(self) -> str:
        import numpy as np

        from snasnet.plots import scatter_figure

        rows = [row for row in search_result(Path(str(self.search)))["table"] if row["status"] == "ok"]
        if len(rows) < 3:
            raise UserError(f"--search {self.search} has {len(rows)} cells with a score", "a picture needs 3")
        rates = np.array([row["rate"] for row in rows])
        return scatter_figure({"score": [row["score"] for row in rows]}, rates, f"{len(rows)} cells of {self.search}")


def valid_cell(text: str) -> Any:
    """The cell of a text, if it makes a network."""
    from snasnet.cells import Cell

    cell = Cell(text)
    if not cell.is_valid():
        raise UserError(f"cell {text} has no direct edge from input to output", "set row 0, column 3")
    return cell
