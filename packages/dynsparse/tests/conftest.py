"""Few examples in CI: shapes are small, but each needs a convolution."""

from hypothesis import settings

settings.register_profile("ci", max_examples=25, deadline=None, derandomize=True)
