"""The small residual net on Fashion-MNIST that the claims are measured on, and its images."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from core_utils.data import Split, fashion_mnist_small, idx_folder
from core_utils.files import write_atomically
from qdrop.errors import CalibrationError
from qdrop.preprocessing import FASHION_MNIST

EPOCHS, BATCH, RATE, DECAY = 8, 128, 0.1, 5e-4
"""The float net's training. On a fifth of the training images, held out, 6 to 18 epochs gave 87.8 to 88.4 %; nothing was
chosen on the test part."""
RISING = 0.25
"""Share of the training in which the learning rate rises."""
SEED = 220_305_740
"""Of the float net, which all seeds of an experiment share: what they vary is the quantisation."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        channels: of the input.
        width: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "n channels h w"]) -> Float[Tensor, "n width h2 w2"]:
        """The block's output, after the sum and its ReLU."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


class ResidualNet(nn.Module):
    """A stem and three blocks of 16, 32 and 64 channels for 28x28 images in one channel; 77,754 parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n classes"]:
        """Class scores."""
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def images(data: Path | None = None) -> Split:
    """The images: 8,000 for training and 2,000 for testing in the wheel, or a folder of IDX files.

    Args:
        data: folder with a full Fashion-MNIST.

    Raises:
        DataError: the folder cannot be read.
    """
    return fashion_mnist_small() if data is None else idx_folder(data)


def normalised(pixels: np.ndarray) -> Float[Tensor, "n 1 28 28"]:
    """What the net sees of images, uint8 [n, 28, 28]."""
    (mean,), (deviation,) = FASHION_MNIST.mean, FASHION_MNIST.deviation
    return (torch.tensor(pixels, dtype=torch.float32)[:, None] / 255 - mean) / deviation


def calibration(
    seed: int, count: int, classes: Collection[int] | None = None, *, data: Path | None = None
) -> Float[Tensor, "n 1 28 28"]:
    """Images to calibrate on, drawn without replacement from the training part.

    Args:
        seed: decides which.
        count: how many.
        classes: draw only from these; None draws from all.
        data: folder with a full Fashion-MNIST.

    Raises:
        CalibrationError: there are fewer images.
    """
    split = images(data)
    members = np.arange(len(split.y_train))
    if classes is not None:
        members = np.flatnonzero(np.isin(split.y_train, list(classes)))
    if not 1 <= count <= len(members):
        raise CalibrationError(f"{count} calibration images were asked for, there are 1 to {len(members)} to draw")
    drawn = np.random.default_rng([SEED, seed]).choice(members, count, replace=False)
    return normalised(split.x_train[drawn])


def evaluation_images(data: Path | None = None) -> tuple[Float[Tensor, "n 1 28 28"], Int[Tensor, " n"]]:
    """The test part: what the net sees, and the labels."""
    split = images(data)
    return normalised(split.x_test), torch.from_numpy(split.y_test)


def float_net(folder: Path, *, data: Path | None = None) -> nn.Module:
    """The trained net in evaluation mode; the first call trains it, later ones read the file.

    Processes that ask at the same time train once: the others wait. The training is that of one thread however many
    there are, so that all of one machine get the same net to the bit.

    Args:
        folder: where the file is kept.
        data: folder with a full Fashion-MNIST instead of the embedded images.

    Raises:
        DataError: the images cannot be read.
        FileError: the folder is not writable.
    """
    import safetensors.torch

    with torch.random.fork_rng(devices=[]):
        net = ResidualNet()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"float-{_recipe(data)}.safetensors"
    with _locked(folder / ".float.lock"):
        if not file.is_file():
            _train(net, images(data), EPOCHS)
            write_atomically(file, safetensors.torch.save(net.state_dict()))
    net.load_state_dict(safetensors.torch.load_file(file))
    return net.eval()


def user_cache() -> Path:
    """The folder in which this user's programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qdrop"


def one_cycle(progress: float) -> float:
    """Factor on the learning rate: up in a straight line, then down along half a cosine; `progress` is in [0, 1]."""
    from core_utils.training import cosine

    return progress / RISING if progress < RISING else cosine((progress - RISING) / (1 - RISING))


def _train(net: nn.Module, split: Split, epochs: int) -> None:
    """Trains in place, always alike: the global random state is left as it was found."""
    from core_utils.training import Arrays, Loader, fit

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net.load_state_dict(ResidualNet().state_dict())
        torch.set_num_threads(1)
        try:
            fit(
                net,
                lambda model, batch, _: nn.functional.cross_entropy(model(batch[0]), batch[1]),
                Loader(Arrays(normalised(split.x_train), split.y_train), BATCH, seed=SEED, drop_last=True),
                optimizer=torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True),
                schedule=one_cycle,
                epochs=epochs,
                progress=False,
            )
        finally:
            torch.set_num_threads(threads)


def _recipe(data: Path | None) -> str:
    """Tells nets apart that were trained otherwise: a digest of this file, of torch's version, of the images' place."""
    facts = f"{EPOCHS} {torch.__version__} {FASHION_MNIST} {data and data.resolve()}".encode()
    return hashlib.sha256(Path(__file__).read_bytes() + facts).hexdigest()[:12]


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Waits for the file's lock; the operating system releases it when a process ends, however it ends."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
