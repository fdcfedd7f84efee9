"""The learning rate of the recipe's stages except the courses, as a share of the highest rate."""


def share_of_rate(step: int, steps: int) -> float:
    """Return the share of the highest rate: linear warm-up, plateau, linear decay over the second half."""
    return min(1.0, (step + 1) / 50, max(0.02, 2 * (steps - step) / steps))
