"""Times of steps, pictures and operators on CPUs."""
