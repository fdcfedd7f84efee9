"""`qwen-image plan`: time, memory and disk, before anything runs."""
