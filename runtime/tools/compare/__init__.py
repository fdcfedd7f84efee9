"""`qwen-image compare`: the comparison of two result files, and the table of measures that `verify` shares."""
