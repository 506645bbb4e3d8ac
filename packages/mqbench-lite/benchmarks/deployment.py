"""A quantised net whole: training steps, the integer model, the exported file, and how long quantisation takes.

The net is the small residual one with weights of a random start and statistics of some images; one thread.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core_utils.bench import Benchmark

BATCH, CALIBRATION = 256, 512


def training_steps(*, native: bool) -> Callable[[], object]:
    """Steps of quantisation-aware training with straight-through gradients; `native` rounds by torch's own operation."""
    import torch

    import mqbench_lite as mqb
    from mqbench_lite.built_in import Ste

    images, labels = _images(128)
    qm = _prepared("tensorrt", Ste() if not native else _native_algorithm())
    mqb.calibrate(qm, [images])
    qm.train()
    optimizer = torch.optim.SGD(qm.parameters(), lr=1e-3)

    def call() -> object:
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(qm(images), labels).backward()
            optimizer.step()
        return qm

    return call


def _native_algorithm() -> Any:
    import torch

    from mqbench_lite.built_in import Ste
    from mqbench_lite.quantizers import Quantizer

    class Native(Quantizer):
        def quantize(self, x: torch.Tensor) -> torch.Tensor:
            if self.scale.dim():
                grid = self.scale, self.zero_point, self.axis
                return torch.fake_quantize_per_channel_affine(x, *grid, self.qmin, self.qmax)
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)

    class NativeSte(Ste):
        def make_quantizer(self, spec: Any, role: Any) -> Quantizer:
            return Native(spec, role, observer="minmax")

    return NativeSte()


def integers() -> Callable[[], object]:
    """`IntegerModel` on a batch."""
    import torch

    qm, images = _calibrated("onnxruntime"), _images(BATCH)[0]
    model = qm.to_integer()

    def call() -> object:
        with torch.no_grad():
            return model(images)

    return call


def simulation() -> Callable[[], object]:
    """The same model's simulation in float."""
    import torch

    qm, images = _calibrated("onnxruntime").eval(), _images(BATCH)[0]

    def call() -> object:
        with torch.no_grad():
            return qm(images)

    return call


def our_file() -> Callable[[], object]:
    """ONNX Runtime on the file of `export`."""
    import mqbench_lite as mqb

    with tempfile.TemporaryDirectory() as folder:
        artifact = mqb.export(_calibrated("onnxruntime"), Path(folder) / "net.onnx")
        return _session(artifact.path.read_bytes())


def their_file() -> Callable[[], object]:
    """ONNX Runtime on the file of its own `quantize_static`."""
    with tempfile.TemporaryDirectory() as folder:
        plain = _float_file(Path(folder))
        return _session(_quantize_static(plain).read_bytes())


def our_quantisation() -> Callable[[], object]:
    """Capture, calibration on 512 images by min-max, and the file."""
    import mqbench_lite as mqb

    def call() -> object:
        with tempfile.TemporaryDirectory() as folder:
            return mqb.export(_calibrated("onnxruntime"), Path(folder) / "net.onnx")

    call()  # loads the kernels
    return call


def their_quantisation() -> Callable[[], object]:
    """`quantize_static` on the same images; torch's export to ONNX counts, as ours captures the model."""

    def call() -> object:
        with tempfile.TemporaryDirectory() as folder:
            return _quantize_static(_float_file(Path(folder)))

    call()
    return call


def pt2e_quantisation() -> Callable[[], object]:
    """Torchao's export, prepare, calibration and convert on the same images."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    net, images = _net(), _images(CALIBRATION)[0]

    def call() -> object:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(net, (images[:128],)).module()
            quantizer = x86.X86InductorQuantizer()
            quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(exported, quantizer)
            for batch in images.split(128):
                prepared(batch)
            return convert_pt2e(prepared)

    call()
    return call


def _session(content: bytes) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: _images(BATCH)[0].numpy()}

    def call() -> object:
        for _ in range(40):
            outputs = session.run(None, feed)
        return outputs

    return call


def _quantize_static(plain: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Batches(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter(_images(CALIBRATION)[0].split(128))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"x": batch.numpy()}

    target = plain.with_name("quantised.onnx")
    options = {"per_channel": True, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    logging.getLogger().setLevel(logging.ERROR)  # it asks for a step that this net does not need
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(plain, target, Batches(), quant_format=QuantFormat.QDQ, **options)
    return target


def _float_file(folder: Path) -> Path:
    import torch

    file = folder / "float.onnx"
    named = {"input_names": ["x"], "opset_version": 17, "dynamo": False, "dynamic_axes": {"x": {0: "n"}}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch's older exporter announces its end
        torch.onnx.export(_net(), (_images(2)[0],), file, **named)
    return file


def _calibrated(profile: str) -> Any:
    import mqbench_lite as mqb

    qm = _prepared(profile, "minmax")
    mqb.calibrate(qm, _images(CALIBRATION)[0].split(128))
    return qm


def _prepared(profile: str, algorithm: Any) -> Any:
    import mqbench_lite as mqb

    return mqb.prepare(_net(), profile=profile, example_inputs=(_images(2)[0],), algorithm=algorithm)


@functools.cache
def _net() -> Any:
    import torch

    from mqbench_lite.calibration import reestimate_batch_norm
    from mqbench_lite.networks import ResidualNet

    torch.manual_seed(0)
    return reestimate_batch_norm(ResidualNet(), [_images(256)[0]]).eval()


@functools.cache
def _images(count: int) -> Any:
    import torch

    from mqbench_lite.data import FASHION_MNIST, samples

    chosen = [samples(None, "train", FASHION_MNIST)[index] for index in range(count)]
    return torch.stack([image for image, _ in chosen]), torch.stack([label for _, label in chosen])


BENCHMARKS = (
    Benchmark(
        "qat-step",
        "Steps of training with quantisation, batch 128: not slower than with torch's native operation in its place.",
        functools.partial(training_steps, native=False),
        functools.partial(training_steps, native=True),
        target=1.0,
    ),
    Benchmark(
        "integers",
        f"The integer model on {BATCH} images: at most twice the time of the simulation in float.",
        integers,
        simulation,
        target=0.5,
    ),
    Benchmark(
        "throughput",
        f"The exported file in ONNX Runtime, {BATCH} images: at least 0.95 of the throughput of quantize_static's file.",
        our_file,
        their_file,
        target=0.95,
    ),
    Benchmark(
        "quantisation",
        f"From the float net to a file with {CALIBRATION} images, beside torch's export and quantize_static.",
        our_quantisation,
        their_quantisation,
    ),
    Benchmark(
        "quantisation-pt2e",
        "The same, beside torchao's prepare_pt2e and convert_pt2e, which write no file.",
        our_quantisation,
        pt2e_quantisation,
    ),
)
