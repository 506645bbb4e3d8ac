"""Nothing is timed yet: a closed formula has no peer."""

BENCHMARKS = ()
