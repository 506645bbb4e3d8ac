"""Networks as ONNX files that take any batch size.

Of the exact forms only "mix_outputs", one convolution with the filters of all kernels and a weighted sum, has the batch
size in no operator's attributes; masks are part of the weights. Zeros stay zeros in such a file: no runtime leaves them
out, so that it is as fast as a dense network's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from core_utils.errors import UserError
from core_utils.files import write_atomically
from dynsparse.converting import unwrapped
from dynsparse.layers import SDConvNd


def export_onnx(
    model: nn.Module, path: str | Path, input_size: Sequence[int], dynamic_batch: bool = True, *, opset: int = 18
) -> None:
    """Writes a network for inference, atomically; input "x", output "y".

    Args:
        model: as it is after training; unchanged.
        path: the file.
        input_size: of one sample, without the batch axis.
        dynamic_batch: leave the batch size free; otherwise it is 1.
        opset: version of ONNX's operators.

    Raises:
        UserError: the exporter is not installed.
    """
    try:
        import onnxscript  # noqa: F401 -- torch's exporter needs it, and says so in its own way
    except ImportError:
        raise UserError("the export needs the packages onnx and onnxscript", "pip install 'dynsparse[onnx]'") from None
    made = copy.deepcopy(unwrapped(model)).cpu().float().eval()
    for layer in made.modules():
        if isinstance(layer, SDConvNd):
            layer.form = "mix_outputs"
    batch = torch.export.Dim("batch")
    x = torch.zeros(2 if dynamic_batch else 1, *input_size)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its internals
        file = Path(folder, "model.onnx")
        torch.onnx.export(
            made,
            (x,),
            file,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: batch},) if dynamic_batch else None,
            opset_version=opset,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        write_atomically(Path(path), file.read_bytes())
