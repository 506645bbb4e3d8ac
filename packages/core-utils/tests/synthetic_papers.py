"""Experiments of papers that do not exist, one for every outcome that a report can show."""

import struct
import zlib
from pathlib import Path

import numpy as np

from core_utils.claims import Claim


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG = b"".join(  # two pixels, red and blue
    [
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(b"\0\xff\0\0\0\0\xff")),
        _chunk(b"IEND", b""),
    ]
)
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="320" height="180" viewBox="0 0 320 180">
<script>document.title = "ran"</script><path d="M10 170H310M10 170V10" stroke="black" fill="none"/>
<path d="M10 160C80 40 120 120 180 60S280 50 310 20" stroke="#0072b2" stroke-width="3" fill="none"/></svg>"""


def accuracy(trial):
    """A gain of about 2 points; counts its executions in its work folder and draws two figures."""
    noise = np.random.default_rng(trial.seed).normal(size=2)
    figures = trial.workdir / "figures"
    figures.mkdir(exist_ok=True)
    (figures / "curve.svg").write_text(SVG)
    (figures / "pixels.png").write_bytes(PNG)
    (figures / "notes.txt").write_text("not a picture")
    with (trial.workdir / "executions").open("a") as file:
        file.write("x")
    return {
        "effect": 2.0 + 0.5 * noise[0],
        "loss": -0.01 * noise[1] - 1.5,
        "accuracy_ours": 91.25 + noise[0] / 2,
        "accuracy_baseline": 89.25,
        "sparsity": float("nan"),
    }


def crash(trial):
    if trial.seed == 1:
        raise RuntimeError("seed 1 met a <singular> matrix")
    return {"effect": 1.0 + trial.seed}


def deviation(trial):
    return {"effect": 0.0, "images": 2000.0}


def half(trial):
    return {"effect": 0.1 * (trial.seed - 1), "power": 1.23e-7 * (trial.seed + 1)}


def picky(trial):
    from core_utils.errors import UserError

    raise UserError("the folder holds no images")


SCRIPT = "A <script>alert(1)</script> & a | pipe survive as text."
CLAIMS = (
    Claim("gain", "The method gains at least one point of accuracy over the baseline.", "Doe 2020, table 1",
          "1\u20135 points", "points", accuracy, margin=1.0),
    Claim("loss", "The loss falls by more than a tenth against plain training at the same cost.", "Doe 2020, figure 3",
          None, "log ratio", accuracy, effect="loss"),
    Claim("script", SCRIPT, "Doe 2020, <b>table</b> 2", "2 | 3", "points", half),
    Claim("exact", "The integer model and the engine agree on every image.", "Doe 2020, section 4", "exact",
          "deviating outputs", deviation, exact=True, seeds=1),
    Claim("crash", "The solver converges on every instance.", "Doe 2020, appendix", None, "iterations", crash),
    Claim("large", "It holds on the full data too.", "Doe 2020, table 5", "76.1 %", "points", accuracy, full_only=True),
)  # fmt: skip
PICKY = (Claim("picky", "It reads folders.", "Doe 2021", None, "points", picky),)
FINE = (
    Claim("fine", "A second package is not stopped by the first.", "Roe 2022, table 1", "2x", "log ratio", accuracy),
)


def install(folder: Path, **entries: str) -> None:
    """Makes `folder`, when it is on the path, a place where distributions with these claims are installed."""
    metadata = folder / "synthetic_papers-1.2.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: synthetic-papers\nVersion: 1.2.3\n")
    lines = [f"{name.replace('_', '-')} = {reference}" for name, reference in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[core_utils.claims]", *lines, ""]))
