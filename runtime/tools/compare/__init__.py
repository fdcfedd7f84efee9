"""`qwen-image compare`: the comparison of two result files."""
