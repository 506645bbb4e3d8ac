"""The small nets on Fashion-MNIST that claims are measured on, trained once and kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from core_utils.files import write_atomically
from mqbench_lite.data import FASHION_MNIST, samples

EPOCHS, BATCH, RATE, DECAY, SMOOTHING = 6, 128, 0.1, 1e-4, 0.1
"""Of the float training; nothing was chosen on the test part."""
WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""
SEED = 211_103_759
"""Of the float net, which all seeds of an experiment share: what they vary is the quantisation."""


def float_net(name: str, folder: Path, *, data: Path | None = None) -> nn.Module:
    """A trained small net in evaluation mode; the first call trains it, later ones read the file.

    Processes that ask at the same time train once: the others wait. The training is that of one thread however many
    there are, so that all of one machine get the same net to the bit.

    Args:
        name: `residual` or `depthwise`, see `mqbench_lite.networks`.
        folder: where the file is kept.
        data: folder with a full Fashion-MNIST instead of the embedded images.

    Raises:
        DataError: the images cannot be read.
        FileError: the folder is not writable.
    """
    import safetensors.torch

    from mqbench_lite.networks import BUILT_IN

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = BUILT_IN[name]()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{_recipe(data)}.safetensors"
    with _locked(folder / f".{name}.lock"):
        if not file.is_file():
            _train(net, data)
            write_atomically(file, safetensors.torch.save(net.state_dict()))
    net.load_state_dict(safetensors.torch.load_file(file))
    return net.eval()


def user_cache() -> Path:
    """The folder in which this user's programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mqbench-lite"


def _train(net: nn.Module, data: Path | None) -> None:
    """Trains in place, always alike: the global random state is left as it was found."""
    from core_utils.training import Loader, cosine, fit

    def schedule(done: float) -> float:
        return done / WARM_UP if done < WARM_UP else cosine((done - WARM_UP) / (1 - WARM_UP))

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        torch.set_num_threads(1)
        try:
            fit(
                net,
                lambda model, batch, _: nn.functional.cross_entropy(
                    model(batch[0]), batch[1], label_smoothing=SMOOTHING
                ),
                Loader(samples(data, "train", FASHION_MNIST), BATCH, seed=SEED, drop_last=True),
                optimizer=torch.optim.SGD(net.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True),
                schedule=schedule,
                epochs=EPOCHS,
                progress=False,
            )
        finally:
            torch.set_num_threads(threads)


def _recipe(data: Path | None) -> str:
    """Tells nets apart that were trained otherwise: a digest of the sources, of torch's version, of the images' place."""
    sources = b"".join(
        Path(__file__).with_name(name).read_bytes() for name in ("miniature.py", "networks.py", "data.py")
    )
    facts = f"{torch.__version__} {data and data.resolve()}".encode()
    return hashlib.sha256(sources + facts).hexdigest()[:12]


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Waits for the file's lock; the operating system releases it when a process ends, however it ends."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
