"""`qwen-image bench`: contenders, rounds, results, statistics."""
