"""The networks in plain PyTorch, checkpoints, and the reference pipeline."""
