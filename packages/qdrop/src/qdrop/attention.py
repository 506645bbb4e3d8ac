"""Multi-head attention whose projections are layers of their own, so that they can be seen and quantised."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ExplicitAttention(nn.Module):
    """What `nn.MultiheadAttention` computes, from linear layers and `scaled_dot_product_attention`.

    Args:
        attention: the module whose parameters are taken over (the same tensors, where they need not be cut).
        packed: queries, keys and values come from one tensor and one layer, `in_proj`; else from a layer each.
    """

    in_proj_bias = None  # keeps nn.TransformerEncoderLayer from the fused path, which would read past the layers

    def __init__(self, attention: nn.MultiheadAttention, *, packed: bool) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.head_dim, self.dropout = attention.head_dim, attention.dropout
        self.batch_first, self.add_zero_attn = attention.batch_first, attention.add_zero_attn
        self._qkv_same_embed_dim = False
        self.packed = packed and attention.in_proj_weight is not None
        if self.packed:
            self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        else:
            weights: Iterable[Tensor] = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            if attention.in_proj_weight is not None:
                weights = attention.in_proj_weight.chunk(3)
            biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
            self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002  # a hint about the mask, which is applied in any case
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`."""
        batched = query.dim() == 3
        queries, keys, values = self._project(query, key, value)
        if not batched:
            queries, keys, values = (x.unsqueeze(0) for x in (queries, keys, values))
        elif not self.batch_first:
            queries, keys, values = (x.transpose(0, 1) for x in (queries, keys, values))
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        keys, values, extra = self._extended(keys, values)
        bias = self._bias(attn_mask, key_padding_mask, queries, extra)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (queries, keys, values))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = torch.matmul(q / math.sqrt(self.head_dim), k.transpose(-2, -1))
            weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
            weights = functional.dropout(weights, dropout, self.training)
            mixed = torch.matmul(weights, v)
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, bias, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.packed:
            return self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if query is key and key is value:
            return self.in_proj(query).chunk(3, -1)
        weights = self.in_proj.weight.chunk(3)
        biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.chunk(3)
        q, k, v = map(functional.linear, (query, key, value), weights, biases)
        return q, k, v

    def _extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with the learnt and the zero entry at their end, and how many those are."""
        before = keys.shape[1]
        if self.bias_k is not None and self.bias_v is not None:
            keys = torch.cat([keys, self.bias_k.expand(len(keys), -1, -1)], 1)
            values = torch.cat([values, self.bias_v.expand(len(values), -1, -1)], 1)
        if self.add_zero_attn:
            keys, values = functional.pad(keys, (0, 0, 0, 1)), functional.pad(values, (0, 0, 0, 1))
        return keys, values, keys.shape[1] - before

    def _bias(self, mask: Tensor | None, padding: Tensor | None, queries: Tensor, extra: int) -> Tensor | None:
        """What is added to the scores [B, H, L, S]; entries beyond the given keys are never masked."""
        parts = []
        if mask is not None:
            mask = mask.unsqueeze(0) if mask.dim() == 2 else mask
            parts.append(mask.unflatten(0, (-1, self.num_heads if len(mask) > 1 else 1)))
        if padding is not None:
            parts.append(padding[:, None, None, :])
        total = None
        for part in parts:
            if part.dtype == torch.bool:
                part = torch.zeros_like(part, dtype=queries.dtype).masked_fill_(part, -math.inf)
            part = functional.pad(part, (0, extra)) if extra else part
            total = part if total is None else total + part
        return total


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that holds these parameters, or copies of them where they are parts of others."""

    def parameter(tensor: Any) -> nn.Parameter:
        if isinstance(tensor, nn.Parameter):
            return tensor
        return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = parameter(weight)
    if bias is not None:
        layer.bias = parameter(bias)
    return layer
