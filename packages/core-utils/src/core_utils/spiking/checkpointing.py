"""Gradient checkpointing over layers: memory for time, with the same gradients and the same running averages."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(layers: nn.Sequential, segments: int, x: Tensor) -> Tensor:
    """What the layers give; the backward pass computes the inside of each segment anew instead of keeping it.

    Args:
        layers: called one after the other.
        segments: how many parts the layers are cut into, of nearly as many layers each.
        x: input of the first.
    """
    ends = [len(layers) * part // segments for part in range(segments + 1)]
    for start, end in pairwise(ends):
        segment = layers[start:end]
        x = checkpoint(segment, x, use_reentrant=False, context_fn=partial(_around, segment))
    return x


def _around(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first pass through a segment, and the second."""
    return nullcontext(), _averages_kept(segment)


@contextmanager
def _averages_kept(segment: nn.Module) -> Iterator[None]:
    """Lets batch normalisation see a batch for the second time without counting it twice."""
    norms = [module for module in segment.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
