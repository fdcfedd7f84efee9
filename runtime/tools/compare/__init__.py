"""`qwen-image compare`: two result files side by side."""
