"""One of several processes that quantise together: `python rank.py RANK WORLD FOLDER`; see test_ranks.py."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from nets import images, net
from torch import distributed as dist

from qdrop import QDropConfig, quantize, save

CONFIG = QDropConfig(w_bits=2, a_bits=2, iters=25, batch_size=16)


def quantised(rank, world):
    """The rank's model from its part of 48 samples; the parts differ in size."""
    samples = images(48, seed=1)
    sizes = [48] if world == 1 else [20, 28]
    return quantize(net(), samples.split(sizes)[rank].split(10), CONFIG, progress=False)


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=timedelta(seconds=60))
    save(quantised(rank, world), folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()
