"""What a network costs: by counting, and by the clock."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from core_utils import cli
from core_utils.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OfModel(cli.Command):
    """Options of what takes a network of the zoo, or a trained one."""

    model: str | None = None  # a network of the zoo, such as sd_mobilenet_v1
    variant: str = "sd"  # static, masked, dy, condconv, odconv or sd, with --model
    run: Path | None = None  # folder of a finished `train` instead
    sparsity: float = 0.9  # fraction of zeros of the masks, with --model
    mask_sharing: Literal["independent", "shared"] = "independent"  # with --model
    reduction: int = 16  # r of the routers, with --model
    input: tuple[int, int, int] = (3, 224, 224)  # channels, height and width, with --model

    def network(self) -> tuple[Any, tuple[int, ...]]:
        """The network, and the size of its input."""
        from dynsparse.job import named_model, read_trained

        if (self.model is None) == (self.run is None):
            raise UserError("--model NAME or --run DIR must be given, and not both")
        if self.run is not None:
            trained = read_trained(self.run)
            return trained.model, (trained.data.channels, trained.data.size, trained.data.size)
        more: dict[str, Any] = {}
        if self.variant != "static":
            more = {"mask_sharing": self.mask_sharing, "reduction": self.reduction}
        return named_model(str(self.model), self.variant, in_channels=self.input[0], **more), self.input


@dataclass(frozen=True, kw_only=True)
class Count(OfModel):
    """Count parameters, nonzero ones, bytes and multiply-adds, layer by layer."""

    def __call__(self) -> None:
        """Prints the table as Markdown, or all figures as JSON."""
        from dynsparse import count

        model, size = self.network()
        masked = self.model is not None and self.variant in ("masked", "sd")
        costs = count(model, size, sparsity=self.sparsity if masked else None)
        self.show(asdict(costs), lambda: costs.to_markdown())


@dataclass(frozen=True, kw_only=True)
class Profile(OfModel):
    """Time a network with its zeros left out beside itself dense; say which back-end each layer took, and why."""

    batch: tuple[int, ...] = (1,)  # batch sizes
    backend: str = "auto"  # auto, native, mkl, torch, scipy or dense
    repeats: int = 10  # interleaved pairs for each batch size
    seed: int = 0  # decides the weights, with --model

    def __call__(self) -> None:
        """Prints ratios with 95 % intervals, and the layers' choices."""
        from dynsparse.profiling import profile

        if min(self.batch, default=0) < 1 or self.repeats < 6:
            raise UserError(f"--batch must be at least 1 and --repeats 6, got {self.batch} and {self.repeats}")
        import torch

        torch.manual_seed(self.seed)
        model, size = self.network()
        rows, layers = profile(
            model, size, self.batch, sparsity=self.sparsity, backend=self.backend, repeats=self.repeats
        )
        self.show({"batches": rows, "layers": layers}, lambda: _profile_table(rows, layers))


@dataclass(frozen=True, kw_only=True)
class Export(cli.Command):
    """Hand a trained network on: zeros left out in a safetensors file, or as ONNX with a free batch size."""

    run: Path  # folder of a finished `train`
    format: Literal["compressed", "onnx"] = "compressed"  # onnx needs the extra `onnx`
    out: Path  # the file
    overwrite: bool = False  # replace it if it exists

    def __call__(self) -> None:
        """Writes the file and prints its size."""
        from dynsparse import export_onnx, save
        from dynsparse.job import read_trained

        if self.out.exists() and not self.overwrite:
            raise UserError(f"--out {self.out} exists", "name another file, or add --overwrite")
        trained = read_trained(self.run)
        if self.format == "onnx":
            size = (trained.data.channels, trained.data.size, trained.data.size)
            export_onnx(trained.model, self.out, size)
        else:
            save(trained.model, self.out)
        dense = 4 * sum(parameter.numel() for parameter in trained.model.parameters())
        self.show({"file": self.out, "bytes": self.out.stat().st_size, "dense_bytes": dense})


def _profile_table(rows: list[dict[str, Any]], layers: list[str]) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table("batch", "dense (ms)", "sparse (ms)", "times faster [95 %]")
    for row in rows:
        interval = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        table.add_row(str(row["batch"]), f"{row['dense_ms']:.2f}", f"{row['sparse_ms']:.2f}", interval)
    return Group(table, *layers)
