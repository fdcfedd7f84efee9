"""Kernels of a plan from the compiler's account: kinds, sizes, traffic, arithmetic, and a card's limits."""
