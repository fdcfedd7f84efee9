"""Rules that a finished graph must satisfy for its engine."""
