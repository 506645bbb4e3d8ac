"""Commands on the students that a run left: prune one, hand one on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from core_utils import cli
from core_utils.errors import UserError
from core_utils.files import write_atomically
from fedcl.commands.folders import restored


@dataclass(frozen=True, kw_only=True)
class Prune(cli.Command):
    """Cut a task's cheapest blocks and weakest proxies, fine-tune what is left, and test it."""

    run: Path  # folder of a finished `fedcl run`
    task: int = 0  # from 0
    blocks: int = 0  # blocks of the backbone to cut
    proxy_threshold: float = 0.05  # proxies whose gate is below this are cut
    steps: int = 0  # of fine-tuning on the joint training images of the task
    out: Path | None = None  # weights file to write, .safetensors

    def __call__(self) -> None:
        """Prints what was cut, what it saves, and accuracies."""
        from fedcl.students import pruned

        federation = restored(self.run)
        theta = _theta(federation, self.task)
        facts, state = pruned(
            federation, self.task, theta, blocks=self.blocks, threshold=self.proxy_threshold, steps=self.steps
        )
        if self.out is not None:
            _weights_file(self.out, ".safetensors")
            import safetensors.torch

            write_atomically(self.out, safetensors.torch.save(state))
        self.show({**asdict(facts.report), **facts.accuracies})


@dataclass(frozen=True, kw_only=True)
class Export(cli.Command):
    """Write a task's student: its own tensors, the whole network's, or an ONNX graph from images to logits."""

    run: Path  # folder of a finished `fedcl run`
    task: int = 0  # from 0
    format: Literal["task", "full", "onnx"] = "task"  # onnx needs the extra `onnx`
    out: Path = Path("student.safetensors")  # file to write

    def __call__(self) -> None:
        """Writes the file."""
        from fedcl.students import full_state, onnx_file

        _weights_file(self.out, ".onnx" if self.format == "onnx" else ".safetensors")
        federation = restored(self.run)
        theta = _theta(federation, self.task)
        model: Any = federation.trainer.model(self.task, theta)
        if self.format == "onnx":
            content = onnx_file(model, federation.scenario.input_shape)
        else:
            import safetensors.torch

            content = safetensors.torch.save(model.task_state() if self.format == "task" else full_state(model))
        write_atomically(self.out, content)
        self.show({"written": self.out, "classes": federation.scenario.tasks[self.task], "bytes": len(content)})


def _theta(federation: Any, task: int) -> Any:
    if not 0 <= task < federation.scenario.num_tasks:
        raise UserError(f"--task must lie in 0..{federation.scenario.num_tasks - 1}, got {task}")
    return federation.server.theta(task)


def _weights_file(out: Path, suffix: str) -> None:
    if out.suffix != suffix:
        raise UserError(f"--out {out} must end in {suffix}")
