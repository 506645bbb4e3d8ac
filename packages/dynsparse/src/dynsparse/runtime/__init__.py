"""The sparse runtime: finalised layers on CPUs, by kernels that walk over nonzeros only."""
