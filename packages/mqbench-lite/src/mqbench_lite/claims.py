"""What the paper says, measured on a small residual net and real images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core_utils.claims import Claim, Trial

if TYPE_CHECKING:
    from mqbench_lite.cells import Cell
    from mqbench_lite.pretrained import FloatNetwork

PAPER = "Li et al., NeurIPS 2021 Datasets and Benchmarks, arXiv 2111.03759"
HARDWARE = ("tensorrt", "acl", "tvm", "snpe", "fbgemm")
TRAINED_ON = ("tensorrt", "tvm")
"""The two libraries whose rules differ most: by channel and by tensor, free step sizes and powers of two."""
STEPS, CALIBRATION = 40, 512
"""Training steps of 128 images, and calibration images, in the demo; `--full` takes ten times the steps."""
CLOSE, GAP, LSQ_GAP = 1.5, 2.0, 1.5
"""Points of accuracy: within which algorithms are called equal, and from which on a gap is one."""


def benchmark(trial: Trial) -> dict[str, float]:
    """One seed: ranges by min-max at 4 bit for six libraries, and training at 3 bit for three, from one float net.

    The seed decides calibration images and the order of training. Accuracies are in percent of the fixed test part,
    which nothing is chosen by; of a training, those after its last step.
    """
    from mqbench_lite.cells import held_out, network_of

    network = network_of(_cell(trial, "minmax", "academic", "4/4").config)
    bench = Bench(trial, network, held_out(_cell(trial, "minmax", "academic", "4/4").config, network.preprocessing))
    ranges = {name: bench.accuracy("minmax", name, "4/4") for name in ("academic", *HARDWARE)}
    academic = {name: bench.accuracy(name, "academic", "3/3") for name in ("lsq", "ste", "pact")}
    lsq = {
        init: {name: bench.accuracy("lsq", name, "3/3", init=init) for name in ("academic", *TRAINED_ON)}
        for init in ("mean", "mse")
    }
    gaps = {init: of["academic"] - sum(of[name] for name in TRAINED_ON) / len(TRAINED_ON) for init, of in lsq.items()}
    return {
        "closeness": min(academic.values()) - max(academic.values()),
        "ranges_gap": ranges["academic"] - min(ranges[name] for name in HARDWARE),
        "lsq_gap_mean": gaps["mean"],
        "lsq_gap_mse": gaps["mse"],
        **{f"minmax_w4a4_{name}": value for name, value in ranges.items()},
        **{f"{name}_w3a3_academic": value for name, value in academic.items()},
        **{f"lsq_{init}_w3a3_{name}": value for init, of in lsq.items() for name, value in of.items()},
    }


def deployment(trial: Trial) -> dict[str, float]:
    """The integer model of the net at W8A8 against ONNX Runtime on every test image, to the bit.

    Weights have 7 bits on a processor where the engine's 8-bit products overflow (`doctor`), as the profile for it says.
    """
    from mqbench_lite import export, verify
    from mqbench_lite.cells import held_out, network_of, quantised
    from mqbench_lite.errors import EngineMissingError
    from mqbench_lite.host import host

    profile = host().profile("onnxruntime")
    cell = _cell(trial, "minmax", profile, "8/8")
    network = network_of(cell.config)
    qm = quantised(cell, network)
    trial.workdir.mkdir(parents=True, exist_ok=True)
    artifact = export(qm, trial.workdir / "residual-w8a8.onnx")
    report = verify(qm, artifact, engines=["onnxruntime"], data=held_out(cell.config, network.preprocessing))
    (found,) = report.engines
    if found.skipped:
        raise EngineMissingError(found.engine, "ort")
    return {
        "differing": float(found.differing),
        "logits": float(found.logits),
        "largest_difference": found.max_difference,
        "same_top1": 100 * found.top1,
        "layers_on_integers": 100 * found.layers,
        "weight_bits": 7.0 if profile.endswith("-avx2") else 8.0,
    }


@dataclass(frozen=True)
class Bench:
    """Points of one trial, which share the float net and the test images.

    Attributes:
        trial: whose seed and folder they have.
        network: before quantisation.
        test: batches of the test part.
    """

    trial: Trial
    network: FloatNetwork
    test: Any

    def accuracy(self, algorithm: str, profile: str, bits: str, *, init: str = "mse") -> float:
        """Of one point, percent; it is kept in the trial's folder, so that an interrupted trial goes on."""
        from core_utils.runs import Run
        from mqbench_lite import cells

        cell = _cell(self.trial, algorithm, profile, bits, init)
        folder = self.trial.workdir / f"{cell.key}-{init}"
        with Run.open(folder, {"cell": cell.key, "config": cell.config}, resume=True) as run:
            if not run.finished:
                run.finish({"accuracy": cells.accuracy(cells.quantised(cell, self.network), self.test)})
            return float(run.result()["accuracy"])


def _cell(trial: Trial, algorithm: str, profile: str, bits: str, init: str = "mse") -> Cell:
    from mqbench_lite.cells import Cell
    from mqbench_lite.grids import GridConfig

    config = GridConfig(
        data=trial.data,
        init=init,
        steps=10 * STEPS if trial.full else STEPS,
        calibration=CALIBRATION,
        verify=False,
        device=trial.device,
        cache=trial.workdir.parent,
    )
    return Cell(config=config, algorithm=algorithm, profile=profile, bits=bits, seed=trial.seed, workdir=trial.workdir)


def _claim(name: str, statement: str, source: str, **options: Any) -> Claim:
    return Claim(name, statement, source, **{"unit": "points", "measure": benchmark, "paper_value": None, **options})


CLAIMS = (
    _claim(
        "academic-equal",
        "Trained alike in the academic setting, LSQ, PACT and the straight-through estimator are within 1.5 points of each "
        "other at W3A3 on a small residual net.",
        f"{PAPER}, abstract",
        paper_value="algorithms are about equal",
        effect="closeness",
        margin=-CLOSE,
    ),
    _claim(
        "hardware-gap",
        "Min-max ranges at W4A4 cost at least 2 points more under the rules of the worst of five libraries than in the "
        "academic setting.",
        f"{PAPER}, abstract",
        paper_value="a large gap remains",
        effect="ranges_gap",
        margin=GAP,
    ),
    _claim(
        "lsq-gap",
        "LSQ from its papers' initial step size loses at least 1.5 points at W3A3 under TensorRT's and TVM's rules.",
        f"{PAPER}, abstract",
        paper_value="a large gap remains",
        effect="lsq_gap_mean",
        margin=LSQ_GAP,
    ),
    _claim(
        "lsq-gap-mse",
        "It loses at least 1.5 points there as well if it starts from the range of least squared error.",
        f"{PAPER}, abstract",
        paper_value="not part of the paper",
        effect="lsq_gap_mse",
        margin=LSQ_GAP,
    ),
    _claim(
        "integers-exact",
        "Every logit of the integer model at W8A8 equals ONNX Runtime's to the bit, on all test images.",
        "this package's promise; the paper's toolkit does not measure it",
        unit="differing logits",
        measure=deployment,
        effect="differing",
        exact=True,
        seeds=1,
    ),
)
