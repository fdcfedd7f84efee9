"""The networks in plain PyTorch, and nothing else."""
