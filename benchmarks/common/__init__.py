"""Parts that several benchmarks share: the environment's facts, large checkpoints, measured processes."""
