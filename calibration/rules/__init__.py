"""Rules that say which linears are quantised and how, by names and shapes alone."""
