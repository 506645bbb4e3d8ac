"""Reproducible and deployable quantisation (arXiv 2111.03759)."""

import core_utils

if core_utils.CONTRACT != 1:
    raise ImportError("mqbench-lite needs core-utils with contract 1")

__all__: list[str] = []
