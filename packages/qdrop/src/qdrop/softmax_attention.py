"""Scaled dot-product attention in steps, so that the attention probabilities can be quantised between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    transform: Callable[[Tensor], Tensor],
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`, with its probabilities transformed before they meet `value`.

    Args:
        query: [..., heads, L, E].
        key: [..., heads, S, E].
        value: [..., heads, S, V].
        attn_mask: [..., L, S], boolean (True takes part) or added to the scores.
        dropout_p: probability that a probability is dropped.
        is_causal: hide later positions.
        scale: factor of the scores; 1 / sqrt(E) by default.
        enable_gqa: fewer heads of key and value, each for several of the query.
        transform: what is done to the probabilities, [..., heads, L, S].

    Returns:
        [..., heads, L, V].
    """
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    probabilities = transform(torch.softmax(scores, -1))
    if dropout_p > 0:
        probabilities = torch.dropout(probabilities, dropout_p, train=True)
    return probabilities @ value
