"""Rules that determine the quantised linears and their precision by names and shapes alone."""
