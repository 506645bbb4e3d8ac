"""What becomes of a student after its federation: pruning with fine-tuning, and files for others."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcl.errors import ConfigError
from fedcl.federation import FederatedRun
from fedcl.models.nettailor import PruneReport, TailoredNet
from fedcl.tensors import Theta


@dataclass(frozen=True)
class Pruned:
    """What pruning did.

    Attributes:
        report: what was cut.
        accuracies: on the task's test images: before, after cutting, after fine-tuning.
    """

    report: PruneReport
    accuracies: dict[str, float]


def pruned(
    federation: FederatedRun, task: int, theta: Theta, *, blocks: int, threshold: float, steps: int
) -> tuple[Pruned, dict[str, Tensor]]:
    """Prunes a task's student and fine-tunes it without the complexity term, as the paper does.

    Args:
        federation: whose data and settings of local training are used.
        task: index.
        theta: the student's tensors.
        blocks: how many to cut.
        threshold: of proxies.
        steps: of SGD on all clients' training images of the task.

    Returns:
        What was done, and the tensors that belong to the task.

    Raises:
        ConfigError: the last path would be cut, or the model is no student.
    """
    trainer = federation.trainer
    model = trainer.model(task, theta)
    if not isinstance(model, TailoredNet):
        raise ConfigError(f"only students can be pruned, not a {type(model).__name__}")
    before = trainer.accuracy(task, theta)
    report = model.prune(blocks, threshold)
    after = trainer.accuracy(task, trainer.layout(task).read(model))
    if steps:
        _fine_tune(model, federation, task, steps)
    tuned = trainer.accuracy(task, trainer.layout(task).read(model))
    accuracies = {"accuracy": before, "accuracy_pruned": after, "accuracy_fine_tuned": tuned}
    return Pruned(report, accuracies), model.task_state()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a network, each with memory of its own."""
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}


def onnx_file(model: nn.Module, input_shape: tuple[int, ...]) -> bytes:
    """An ONNX graph from images [B, ...] to logits [B, n], without what was pruned.

    Raises:
        ConfigError: the extra `onnx` is not installed.
    """
    try:
        import onnxscript  # noqa: F401 -- torch's exporter needs it
    except ImportError:
        raise ConfigError("format onnx needs onnx and onnxscript", "install fedcl[onnx]") from None
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "student.onnx")
        torch.onnx.export(
            model.eval(),
            (torch.zeros(2, *input_shape),),
            str(file),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=({0: batch},),
            external_data=False,
            verbose=False,
        )
        return file.read_bytes()


def _fine_tune(model: Any, federation: FederatedRun, task: int, steps: int) -> None:
    training = federation.training
    joint = federation.scenario.joint(task)
    x, y = torch.from_numpy(joint.x), torch.from_numpy(joint.y)
    rng = np.random.default_rng([federation.protocol.seed, 11, task])
    weights = [each for each in model.parameters() if each.requires_grad]
    model.train()
    for _ in range(steps):
        rows = torch.from_numpy(rng.permutation(len(y))[: training.batch_size])
        loss = functional.cross_entropy(model(x[rows].to(weights[0].device)), y[rows].to(weights[0].device))
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:  # of what was pruned
                    weight.sub_(gradient, alpha=training.lr)
    model.eval()
