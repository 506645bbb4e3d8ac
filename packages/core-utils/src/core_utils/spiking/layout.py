"""Where the time axis goes: models see [T, B, ...], loaders and files [B, T, ...]."""

from collections.abc import Callable

from jaxtyping import Shaped
from torch import Tensor


def time_first(batch: Shaped[Tensor, "B T *shape"]) -> Shaped[Tensor, "T B *shape"]:
    """A loader's batch as models see it: the one transpose between them.

    Args:
        batch: shape [B, T, ...].

    Returns:
        A view, shape [T, B, ...].
    """
    return batch.transpose(0, 1)


def over_time(
    layer: Callable[[Tensor], Tensor], x_seq: Shaped[Tensor, "T B *shape"]
) -> Shaped[Tensor, "T B *out_shape"]:
    """One call of a layer without memory for all time steps, as one batch of T * B.

    An image that is shown at every step, `image.expand(T, *image.shape)`, is computed once, as a batch of B. It has the
    same mean and variance over T * B images as over B, so batch normalisation gives the same, too; only its running
    variance, an unbiased estimate, differs, by a relative 1 / (B H W) at most.

    Args:
        layer: from [N, ...] to [N, ...], such as a convolution, a pool or a linear layer.
        x_seq: shape [T, B, ...]; a stride of 0 over time says that all steps are the same.

    Returns:
        What the layer gives for every step, shape [T, B, ...]; where all steps are the same, so is the stride of 0.
    """
    if len(x_seq) > 1 and x_seq.stride(0) == 0:
        out = layer(x_seq[0])
        return out.expand(len(x_seq), *out.shape)
    return layer(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])
