"""Attention in steps is attention."""

import pytest
import torch

from qdrop.softmax_attention import scaled_dot_product_attention


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": torch.rand(2, 1, 5, 5) > 0.3},
        {"enable_gqa": True},
    ],
    ids=["plain", "causal", "scale", "added-mask", "boolean-mask", "grouped"],
)
def test_it_agrees_with_torch(options):
    torch.manual_seed(0)
    heads = 2 if "enable_gqa" in options else 4
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, heads, 5, 8), torch.randn(2, heads, 5, 6)
    if "attn_mask" in options and options["attn_mask"].dtype == torch.bool:
        options["attn_mask"][..., 0] = True  # no row may be empty
    ours = scaled_dot_product_attention(query, key, value, transform=lambda p: p, **options)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_is_transformed_are_probabilities():
    seen = []
    query = torch.randn(1, 1, 3, 4)
    scaled_dot_product_attention(query, query, query, transform=lambda p: seen.append(p) or p)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(1, 1, 3))
