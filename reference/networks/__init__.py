"""The networks in plain PyTorch, and no other code."""
