"""Quantisation: activation statistics, rules for linears, codes and scales, rotations, equalisation, sensitivity."""
