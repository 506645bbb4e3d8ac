"""Which elements are quantised while a unit is reconstructed: the random drop that the paper is named after."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from qdrop.errors import ReconstructionError
from qdrop.fake_quant import random_mask


class Drops:
    """Draws one mask after the other: for the unit's input, then for its quantisers in the order of their calls.

    Where ranks share a batch, each draws the masks of the whole batch and takes its own rows, so that the elements that
    drop do not depend on the number of ranks.

    Args:
        keep: probability that an element is quantised.
        generator: of the random masks.
        stream: masks to use instead, in order; True means quantised.

    Attributes:
        share: the part of the batch that this rank holds.
    """

    def __init__(
        self, keep: float, generator: torch.Generator, stream: Iterator[Bool[Tensor, " ..."]] | None = None
    ) -> None:
        self.keep, self.generator, self.stream = keep, generator, stream
        self.rows: Int64[Tensor, " rows"] | None = None
        self.batch = 0

    def take(self, rows: Int64[Tensor, " rows"] | None, batch: int) -> None:
        """Begins an iteration in which this rank holds these rows of a batch; None: all of them."""
        self.rows, self.batch = rows, batch

    @property
    def share(self) -> float:
        """Rows held, divided by rows of the whole batch."""
        return 1.0 if self.rows is None else len(self.rows) / self.batch

    def __call__(self, like: Tensor) -> Bool[Tensor, " ..."] | UInt8[Tensor, " ..."] | None:
        """A mask of the tensor's shape, True where it is quantised; None where all of it is.

        Raises:
            ReconstructionError: a given mask has another shape, or there are too few.
        """
        if self.keep == 1.0:
            return None
        if self.stream is not None:
            mask = next(self.stream, None)
            if mask is None or mask.shape != like.shape:
                found = "ended" if mask is None else f"gave {tuple(mask.shape)}"
                raise ReconstructionError(f"the mask stream {found} where a mask of {tuple(like.shape)} is drawn")
            return mask.to(like.device)
        if self.rows is None:
            return random_mask(like.shape, self.keep, self.generator, like.device)
        group = like.shape[0] // len(self.rows)  # a sample may be several rows within a unit, as windows are
        whole = random_mask((self.batch * group, *like.shape[1:]), self.keep, self.generator, like.device)
        return whole.unflatten(0, (self.batch, group))[self.rows.to(like.device)].flatten(0, 1)
