"""The table of quantisation methods, and methods that nothing in the product uses."""
